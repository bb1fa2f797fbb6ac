"""One client per surface, and what they share."""
