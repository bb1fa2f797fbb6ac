"""dit-moe: DiT-MoE, images of classes by a diffusion transformer whose blocks are mixtures of experts."""
