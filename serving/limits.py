"""Limits of the front door, the same on every surface."""

from __future__ import annotations

from dataclasses import dataclass

MAX_ID_CHARS = 256
"""Of the id of a model, and of what a caller calls a request."""

MAX_SMALL_BYTES = 1 << 13
"""Of a gRPC message that only names something."""

MAX_TYPED_ELEMENTS = 1 << 18
"""Elements of a tensor sent one by one (JSON numbers, typed gRPC contents). JSON of that many is parsed in a process of
its own; raw bytes have no such cost and no such bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressLimits:
    """Bounds on one request before anything is decoded. Images have their own: ``serving.media.limits``."""

    max_body_bytes: int = 64 << 20
    """Of any request; over gRPC only pixel tensors may be that long."""
    max_encoded_bytes: int = 32 << 20
    """Of a gRPC message that holds encoded images."""
    max_images: int = 64
    max_top_k: int = 1000
    max_header_value_bytes: int = 4096
    max_stream_in_flight: int = 64
    """Requests of one bidirectional stream that may be unanswered at a time; reading pauses beyond, and while they have
    ``max_body_bytes`` together."""
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
    """Of the grammar that it makes; see ``serving.tasks.chat.schema_bounds``."""
    max_schema_nesting: int = 1_000_000
    """Product of counts inside each other."""
    max_logit_bias: int = 300
    keep_alive_s: float = 15.0
    """Silence after which a chat stream gets a comment, so that nothing in between takes it for dead."""

    @property
    def max_image_chars(self) -> int:
        """Of an image in JSON, as base64 or a URL. One that is too large by little fails alone."""
        return 2 * self.max_bytes_per_image

    @property
    def max_message_fields(self) -> int:
        """Fields of a gRPC message, elements of repeated ones counted: twice as many as the longest valid request has,
        so that one with a little too much of something is told of what."""
        most = 64 + self.max_images + 2 * (self.max_messages + self.max_parts) + 3 * self.max_logit_bias
        return 2 * most

    @property
    def max_prompt_bytes(self) -> int:
        """Of a gRPC message that is a prompt and what not to show, and a few settings."""
        return min(self.max_body_bytes, 2 * 4 * self.max_text_chars + MAX_SMALL_BYTES)

    def max_message_bytes(self, *, has_pixels: bool) -> int:
        """Of a gRPC message with images."""
        return self.max_body_bytes if has_pixels else min(self.max_body_bytes, self.max_encoded_bytes)
