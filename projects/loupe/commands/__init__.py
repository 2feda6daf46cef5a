"""The commands: argument parsing, one file for each."""
