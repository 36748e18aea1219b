"""What should not be known: of the answer, to a model; of those it was trained on, to others."""
