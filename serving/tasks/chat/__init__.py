"""Chat about images."""
