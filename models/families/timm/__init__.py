"""Image classifiers of timm, by name or from a folder."""
