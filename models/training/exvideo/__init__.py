"""How exvideo-nano is made: clips, autoencoder, image encoder, base of 8 frames, extension to 40, measurements."""
