"""Engines that denoise video step by step."""
