"""What changes how families run: attention, samplers, step caches, early exits. No method knows a family."""
