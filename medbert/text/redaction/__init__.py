"""Removing what was found: operators, surrogates, dates that move."""
