"""Calibration of any family that classifies pictures."""
