"""Structured logs: one JSON object per line, with the request id, never with image content or keys."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import structlog

_SECRET_KEYS = frozenset(
    {
        "api_key",
        "authorization",
        "body",
        "cookie",
        "image",
        "images",
        "key",
        "keys",
        "password",
        "pixels",
        "secret",
        "token",
        "x_api_key",
    }
)
_MASK = "***"


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
        # Module-level loggers must follow a later ``configure``; that costs a few microseconds a line.
        cache_logger_on_first_use=False,
    )


def mask_secrets(_logger: Any, _method: str, event: Any) -> Any:
    """Replace what must not be written down. The last line of defence: call sites do not log such values at all."""
    return _masked(event)


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _MASK if _is_secret(key) else _masked(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(inner) for inner in value]
    # Image content, encoded or decoded: bytes, and arrays of any library. An array's scalar is a number.
    is_content = isinstance(value, bytes | bytearray | memoryview) or getattr(value, "ndim", 0) > 0
    return _MASK if is_content else value


def _is_secret(key: object) -> bool:
    return str(key).lower().replace("-", "_") in _SECRET_KEYS
