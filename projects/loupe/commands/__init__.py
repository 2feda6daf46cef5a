"""The commands: argument parsing, one file for each; the work is done elsewhere."""
