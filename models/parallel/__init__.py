"""Sequence parallelism for video transformers: Ulysses, ring, their product, and the guidance axis.

Groups are arguments, never globals; world size 1 takes the same path. Read in this order: ``degrees``, ``groups``,
``layout`` (which rank holds which tokens), ``ulysses``, ``ring``, ``usp``, ``forward`` (the whole model).
"""
