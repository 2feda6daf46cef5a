"""What the tables and benchmarks of the documents need; no part of the installed Loupe."""
