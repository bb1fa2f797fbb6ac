"""Sequences of different lengths in one batch, without padding: one after another, each seeing itself alone.

Source: FiT and FiTv2 (arXiv:2402.12376, arXiv:2410.13925), which attend under a mask of segments. Differs from them:
what depends on the sequence runs over those of one length together, so that no pair is computed only to be masked, and
nothing is padded.
"""
