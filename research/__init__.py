"""What the tables, costs and benchmarks of the documents need; no part of the installed Loupe."""
