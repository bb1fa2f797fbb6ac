"""Items in, one outcome per item out."""
