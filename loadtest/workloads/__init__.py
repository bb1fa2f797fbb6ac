"""What to send: drawn pictures, broken pictures, and the mix of a scenario."""
