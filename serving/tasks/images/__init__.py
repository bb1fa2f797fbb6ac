"""Making pictures from prompts, and changing pictures."""
