"""`python -m loupe.ops` prints which path the operator takes on each device, and why."""

from loupe.ops.backends import describe

print(describe())
