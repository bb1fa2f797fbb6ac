"""Four callers of one tenant send JPEGs of many scans; an account that is empty sends ordinary pictures.

The tenant that is hurt sends a picture that goes to a decode worker, one call after the other. What an account without
a joule is given is counted as the processor time of the decode workers.
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from tests.benchmarks.faults.harness import Figures, Start, watched
from tests.support.system import MODEL, System

TITLE = "decoding taken by one tenant"
_FLOOD_S = 20.0
_NUM_CALLERS = 4
_EMPTY_REQUESTS = 60
_SIDE, _EMPTY_SIDE = 1024, 1500


def measure(start: Start) -> Figures:
    """Settings as shipped, with three tenants."""
    with start(tenants=[_tenant("victim"), _tenant("flood"), _tenant("empty", seconds=0.0001)]) as system:
        picture = _body(_encoded(_noise(200), "PNG"))
        with _client(system, "victim") as victim:

            def call() -> None:
                victim.post("/v1/classify", json=picture).raise_for_status()

            call()
            with watched(call) as alone:
                time.sleep(5.0)
            hurt = {}
            for num_scans in (2000, 99):  # 99: as many as are allowed now
                with _flood(system, _body(many_scans(num_scans))), watched(call) as seen:
                    time.sleep(_FLOOD_S)
                hurt[num_scans] = seen
        figures: dict[str, float | int | str | None] = {"victim's p50 alone, ms": alone.p50_ms}
        for num_scans, seen in hurt.items():
            figures[f"victim's p50 beside {num_scans} scans, ms"] = seen.p50_ms
            figures[f"victim's worst beside {num_scans} scans, ms"] = seen.worst_ms
            figures[f"victim's failed calls beside {num_scans} scans"] = seen.failed
        figures["decoding given to an empty account, s"] = _given(system)
    return figures


def many_scans(number: int) -> bytes:
    """A flat progressive JPEG whose last scan comes again and again."""
    data = _encoded(Image.new("L", (_SIDE, _SIDE), 128), "JPEG", progressive=True)
    scan, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    has = data.count(b"\xff\xda")
    return data[:end] + data[scan:end] * (number - has) + data[end:]


def _given(system: System) -> float:
    before_s = _worker_seconds(system)
    with _client(system, "empty") as http:
        for seed in range(_EMPTY_REQUESTS):
            answer = http.post("/v1/classify", json=_body(_encoded(_noise(_EMPTY_SIDE, seed), "JPEG")))
            assert answer.status_code in (422, 429)  # the latter at commits that knew no quota_too_small
    return round(_worker_seconds(system) - before_s, 2)


def _worker_seconds(system: System) -> float:
    found: list[psutil.Process] = []
    for gateway in system.replicas("Gateway"):
        found += gateway.children(recursive=True)
    times = [process.cpu_times() for process in found]
    return float(sum(each.user + each.system for each in times))


@contextmanager
def _flood(system: System, body: dict[str, Any]) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        with _client(system, "flood") as http:
            while not stop.is_set():
                try:
                    if http.post("/v1/classify", json=body).status_code == 429:
                        time.sleep(0.05)
                except httpx.HTTPError:
                    continue

    callers = [threading.Thread(target=run, daemon=True) for _ in range(_NUM_CALLERS)]
    for caller in callers:
        caller.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        stop.set()
        for caller in callers:
            caller.join(60.0)


def _tenant(name: str, seconds: float = 1e4) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "api_key_sha256": [digest], "burst_s": seconds, "seconds_per_s": min(10.0, seconds)}


def _client(system: System, tenant: str) -> httpx.Client:
    return httpx.Client(base_url=system.http_url, headers={"x-api-key": tenant}, timeout=60.0)


def _body(image: bytes) -> dict[str, Any]:
    return {"model": MODEL, "image": base64.b64encode(image).decode()}


def _noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def _encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()
