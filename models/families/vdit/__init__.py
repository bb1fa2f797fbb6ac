"""Efficient-vDiT on Open-Sora-Plan v1.2: diffusion transformer, autoencoder, text encoder, samplers' ranges."""
