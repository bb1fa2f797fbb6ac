"""Training of ``texthawk2-nano``, from rendering to the committed checkpoint."""
