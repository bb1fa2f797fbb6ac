"""Video generation: the gateway's half (types, service) and the replica's half (worker)."""
