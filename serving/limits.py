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
    max_bytes_per_image: int = 20 << 20
    """Of chat, counted before anything is decoded; the same as the media limit of that name."""
    max_messages: int = 256
    max_parts: int = 1024
    """Parts of all messages of a chat together."""
    max_text_chars: int = 1 << 18
    """Characters of all messages of a chat together."""
    max_url_chars: int = 2048
    max_choices: int = 8
    max_stop: int = 4
    max_stop_chars: int = 64
    max_schema_bytes: int = 1 << 14
    max_schema_depth: int = 28
    """Of the 32 levels of a body, less those around the schema."""
    max_schema_properties: int = 256
    max_schema_count: int = 10_000
    """``minItems`` and its like, lengths, and each quantifier of a pattern."""
    max_schema_size: int = 10_000
    """Of the grammar that it makes; see ``serving.ingress.schema_bounds``."""
    max_schema_nesting: int = 1_000_000
    """Product of counts inside each other."""
    max_logit_bias: int = 300
    keep_alive_s: float = 15.0
    """Silence after which a chat stream gets a comment, so that nothing in between takes it for dead."""
