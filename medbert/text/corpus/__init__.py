"""Notes as a corpus: what makes it, what opens it, whether it may be trained on."""
