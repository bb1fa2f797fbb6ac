"""Self-attention of video transformers: one interface, dense and sparse."""
