"""What a benign answer looks like, and how far one that is being written is from it: numbers in, p-values out."""
