"""Pipelines that people already have: folders of diffusers, run step by step by their own blocks."""
