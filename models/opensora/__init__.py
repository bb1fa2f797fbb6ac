"""Open-Sora-Plan v1.2: its diffusion transformer, its autoencoder, its text encoder."""
