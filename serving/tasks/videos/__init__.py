"""Clips from words, as durable jobs."""
