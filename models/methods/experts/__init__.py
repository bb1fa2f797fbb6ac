"""Mixtures of experts: gates, and what runs the tokens of each expert together. No method knows a family."""
