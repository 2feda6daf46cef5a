"""How a detector's metrics fall as images get worse: degrade, measure, keep, draw."""
