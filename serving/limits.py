"""Limits of the front door, the same on every surface."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressLimits:
    """Bounds on one request before anything is decoded. Images have their own: ``serving.media.limits``."""

    max_body_bytes: int = 64 << 20
    max_images: int = 64
    max_top_k: int = 1000
    max_header_value_bytes: int = 4096
    max_stream_in_flight: int = 64
    """Requests of one bidirectional stream that may be unanswered at a time; reading pauses beyond."""
    body_timeout_s: float = 30.0
