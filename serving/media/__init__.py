"""Images in, canonical pixels or tiles out: fetch, probe, decode, hash, prepare, remember. The page: docs/media.md.

What decode workers load (``worker`` and what it imports) is numpy and Pillow only: a worker starts in a fraction of a
second and is killed freely. Nothing in this package may import torch.
"""
