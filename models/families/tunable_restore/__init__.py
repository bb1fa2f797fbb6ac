"""Restoration of pictures by tunable convolutions."""
