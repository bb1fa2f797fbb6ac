"""JSON bodies that are made to be dear to read, one after the other, and how long everybody else waits meanwhile.

The victim asks ``/healthz`` every 5 ms: it waits for as long as the gateway's event loop is held, and for HAProxy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import httpx

from tests.benchmarks.faults.harness import Figures, Start, gateways, memory_of, watched
from tests.e2e.test_bad_input import HTTP_BODIES
from tests.support.system import MODEL, System

TITLE = "JSON of brackets and other dear bodies"
_CLASSIFY, _CHAT, _INFER = "/v1/classify", "/v1/chat/completions", f"/v2/models/{MODEL}/infer"
_JSON = "application/json"
_ITEMS = 263_000
"""Just what the old bound on commas let through."""


def bodies() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """Name, and (path, content type, body) of one or more requests."""
    tensor = b'{"inputs":[{"name":"PIXELS","datatype":"FP32","shape":[1,295,296,3],"data":[%b]}]}'
    image = b"A" * (24 << 20)
    yield "59 MB of lists", [(_INFER, _JSON, b'{"inputs":[' + (b"[" * 112 + b"]" * 112 + b",") * _ITEMS + b"1]}")]
    yield "2.5 MB of lists", [(_INFER, _JSON, b'{"inputs":[' + b"[[[[]]]]," * _ITEMS + b"1]}")]
    yield "5 MB of numbers", [(_INFER, _JSON, tensor % b",".join([b"0.12345678901234567"] * 261_960))]
    yield "60 MB of short strings", [(_INFER, _JSON, b'{"inputs":[' + b'"",' * 20_000_000 + b"1]}")]
    yield "48 MB of base64", [(_CLASSIFY, _JSON, b'{"model":"m","images":["%b","%b"]}' % (image, image))]
    yield "60 MB of spaces", [(_CHAT, _JSON, b'{"messages":' + b" " * 60_000_000 + b"1}")]
    yield "20 MB of escapes", [(_CHAT, _JSON, b'{"messages":"' + b'\\"' * 10_000_000 + b'"}')]
    yield "table of bad input", [(_CLASSIFY, kind, body) for body, kind, _ in HTTP_BODIES.values()]


def measure(start: Start) -> Figures:
    """Send each body alone."""
    figures: dict[str, float | int | str | None] = {}
    with start("gateway.replicas=1") as system, httpx.Client(base_url=system.http_url, timeout=120.0) as victim:
        call = partial(_healthy, victim)
        for _ in range(20):
            call()
        for name, group in bodies():
            with memory_of(partial(gateways, system)) as memory, watched(call, every_s=0.005) as seen:
                _send(system, group)
            figures[f"{name}: victim's worst call, ms"] = seen.worst_ms
            figures[f"{name}: memory, MiB"] = memory.growth
    return figures


def _healthy(client: httpx.Client) -> None:
    client.get("/healthz").raise_for_status()


def _send(system: System, group: list[tuple[str, str, bytes]]) -> None:
    with httpx.Client(base_url=system.http_url, timeout=120.0) as client:
        for path, kind, body in group:
            with suppress(httpx.HTTPError):  # refused while it was still being sent
                client.post(path, content=body, headers={"content-type": kind} if kind else {})
