"""What every verb gives: one folder, whole or not at all, and a word of how far it is."""
