"""What the training of several families shares."""
