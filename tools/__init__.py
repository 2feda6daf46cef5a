"""Command-line tools; the logic lives in the package."""
