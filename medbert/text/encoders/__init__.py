"""Text BERTs: their pretraining, their tokenizers, vectors of notes."""
