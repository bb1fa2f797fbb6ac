"""Training and measurement of tunable-restore."""
