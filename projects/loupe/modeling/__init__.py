"""The model: one file for each noun of the paper."""
