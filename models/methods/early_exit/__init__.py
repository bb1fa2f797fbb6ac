"""Early exits: when a sample may leave, and how thresholds are found. ``calibration`` needs NumPy only."""
