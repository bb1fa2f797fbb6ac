"""A JSON schema of sixty bytes that asks for ten million items, and who else chats with the same replica meanwhile."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Any

import httpx
import psutil

from tests.benchmarks.faults.harness import Figures, Start, memory_of, watched
from tests.support.system import System

TITLE = "JSON schema of 60 bytes"
MODEL = "texthawk2-nano"
SCHEMAS: dict[str, dict[str, Any]] = {
    "minItems 10,000,000": {"type": "array", "items": {"type": "integer"}, "minItems": 10_000_000},
    "maxItems 1,000,000": {"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000},
    "multipleOf 1,000,003": {"type": "integer", "multipleOf": 1_000_003},
    "a{100} nested 4 times": {"type": "string", "pattern": "^(((a{100}){100}){100}){100}$"},
}
_WORDS = count()


def measure(start: Start) -> Figures:
    """Send each schema once."""
    options = {"engine": "vllm", "max_num_seqs": 8, "kv_cache_mb": 32, "image_cache_mb": 64}
    models = [{"id": MODEL, "options": options}]
    figures: dict[str, float | int | str | None] = {}
    with (
        start("gateway.default_deadline_s=150", models=models) as system,
        httpx.Client(base_url=system.http_url, timeout=150.0) as client,
    ):
        _ask(client).raise_for_status()
        _ask(client, {"type": "object"}).raise_for_status()
        for name, schema in SCHEMAS.items():
            with memory_of(partial(_replica, system)) as memory, watched(partial(_chat, client)) as seen:
                answer = _ask(client, schema)
            figures[f"{name}: answer"] = answer.status_code
            figures[f"{name}: time, ms"] = round(answer.elapsed.total_seconds() * 1e3)
            figures[f"{name}: victim's worst call, ms"] = seen.worst_ms
            figures[f"{name}: memory, MiB"] = memory.growth
    return figures


def _chat(client: httpx.Client) -> None:
    _ask(client).raise_for_status()


def _ask(client: httpx.Client, schema: dict[str, Any] | None = None) -> httpx.Response:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Say {next(_WORDS)}."}],
        "max_tokens": 8,
    }
    if schema is not None:
        format_ = {"name": "s", "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": format_}
    return client.post("/v1/chat/completions", json=body)


def _replica(system: System) -> list[psutil.Process]:
    """The replica and what it has started."""
    found = system.replicas(MODEL)
    for process in list(found):
        found += process.children(recursive=True)
    return found
