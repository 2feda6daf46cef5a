"""Explanations as training data: readers of published files, and text from exact truths."""
