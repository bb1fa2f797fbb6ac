"""Trains texthawk2-nano-verbose: smaller than texthawk2-nano, with long answers about the same pictures."""
