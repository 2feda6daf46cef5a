"""The paper's experiments: rows, runs that can be resumed, intervals, tables."""
