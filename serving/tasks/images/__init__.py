"""Pictures made of words, and pictures changed."""
