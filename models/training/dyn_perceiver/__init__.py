"""Training, measurement and calibration of Dynamic Perceiver."""
