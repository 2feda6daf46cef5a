"""Calibration of the facts, training of the shipped explainer, and the experiment on masks."""
