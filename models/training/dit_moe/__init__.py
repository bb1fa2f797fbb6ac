"""How dit-moe-nano is made: pictures, autoencoder, judge, latents, transformer, measurements."""
