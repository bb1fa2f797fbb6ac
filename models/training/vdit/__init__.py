"""Training of the nano model: autoencoder, teacher, student."""
