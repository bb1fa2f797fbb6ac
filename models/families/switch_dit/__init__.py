"""switch-dit: Switch-DiT, images of classes by a diffusion transformer whose experts depend on the timestep alone."""
