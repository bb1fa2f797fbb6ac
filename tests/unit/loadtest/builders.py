"""Records and payloads for the tests of this folder."""

from __future__ import annotations

from typing import Any

from loadtest.clients.base import Payload
from loadtest.records import Outcome, Record


def make_payload(**fields: Any) -> Payload:
    return Payload(**{"images": (b"abc",), **fields})


def make_record(index: int = 0, **fields: Any) -> Record:
    """An answered request: due at ``index`` seconds, sent at once, answered 0.1 s later."""
    start_s = fields.get("scheduled_at_s", float(index))
    defaults: dict[str, Any] = {
        "index": index,
        "phase": "main",
        "surface": "http_classify",
        "tenant": "default",
        "kind": "digit",
        "outcome": Outcome.OK,
        "scheduled_at_s": start_s,
        "sent_at_s": start_s,
        "first_chunk_at_s": None if start_s is None else start_s + 0.1,
        "done_at_s": None if start_s is None else start_s + 0.1,
        "num_images": 1,
    }
    return Record(**{**defaults, **fields})
