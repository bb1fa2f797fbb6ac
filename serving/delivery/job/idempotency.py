"""What a request for a job asks for, as digests of its fields: two that mean the same have the same, however spelt.

Whatever a request may say counts, the budget too. What only says how it came (its id, the surface) does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Final

import msgspec

from serving.delivery.job.base import JobRequest
from serving.errors import IdempotencyKeyReused

_SAID_ELSEWHERE: Final = {"model", "vireo"}
_DIGEST_CHARS: Final = 16


def asked_by(request: JobRequest[Any]) -> dict[str, str]:
    """Field to digest, of the fields that say something."""
    return {name: _digest(value) for name, value in _said(request) if value not in (None, "", {})}


def check_same(request: JobRequest[Any], earlier: Mapping[str, str]) -> None:
    """Compare a request with what came before with its key.

    Raises: IdempotencyKeyReused: it asks for something else.
    """
    asked = asked_by(request)
    differ = sorted(name for name in asked.keys() | earlier.keys() if asked.get(name) != earlier.get(name))
    if differ:
        raise IdempotencyKeyReused(
            f"idempotency-key came before with another request; different: {', '.join(differ)}. Use a new key for each "
            "job",
            param="idempotency-key",
        )


def _said(request: JobRequest[Any]) -> Iterator[tuple[str, Any]]:
    yield "model", request.model
    yield from request.asked.model_dump(exclude=_SAID_ELSEWHERE, warnings=False).items()
    yield from ((f"vireo.{part.name}", getattr(request.budget, part.name)) for part in fields(request.budget))


def _digest(value: Any) -> str:
    plain = float(value) if isinstance(value, int) and value < 2**53 else value  # 4 and 4.0 ask for the same
    return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()[:_DIGEST_CHARS]
