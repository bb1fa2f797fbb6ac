"""Blocks of pipelines that diffusers' modular pipelines lack or have wrong. Its own are used as far as they go."""
