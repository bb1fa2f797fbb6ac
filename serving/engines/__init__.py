"""Engines: one per model family, behind one protocol."""
