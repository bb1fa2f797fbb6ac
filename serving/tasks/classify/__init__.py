"""What an image shows, by name."""
