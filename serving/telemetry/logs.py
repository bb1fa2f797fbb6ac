"""Structured logs: one JSON object per line, with the request id, never with image content or keys."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_SECRET_KEYS = frozenset(
    {"authorization", "api_key", "x_api_key", "key", "secret", "image", "images", "pixels", "body"}
)


def configure(level: str = "info") -> None:
    """Set up logging of this process; the last call wins."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            mask_secrets,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def mask_secrets(_logger: Any, _method: str, event: Any) -> Any:
    """Replace what must not be written down. The last line of defence: call sites do not log such values at all."""
    return {
        key: "***" if key.lower() in _SECRET_KEYS or isinstance(value, bytes) else value for key, value in event.items()
    }
