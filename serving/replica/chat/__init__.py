"""Engines that generate text, one token at a time."""
