"""What the audits try on a model, and what its files say."""
