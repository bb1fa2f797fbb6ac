"""Images in, canonical pixels out: probe, decode, hash, prepare. numpy and Pillow only, because it runs in workers.

Nothing below this package may import torch: a decode worker starts in a fraction of a second and is killed freely.
"""
