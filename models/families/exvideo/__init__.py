"""SVD and ExVideo: clips from a first frame."""
