"""Programs that check what docs/reliability.md promises."""
