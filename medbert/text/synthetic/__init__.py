"""Notes of people who do not exist, to try and to train on."""
