"""What the verbs of notes and corpora share, and their parts."""
