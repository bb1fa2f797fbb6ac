"""Energy: meters behind one protocol, and what a replica tells its requests of what they read."""
