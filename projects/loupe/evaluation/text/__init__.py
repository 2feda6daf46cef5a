"""Scores of explanations: facts first, then overlap with reference texts."""
