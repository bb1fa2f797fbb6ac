"""Dynamic Perceiver (arXiv 2306.11248): an image classifier with four exits. Importing this needs no torch."""
