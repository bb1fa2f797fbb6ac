"""Callers hang up while their pictures are classified: how much was done for them, and how much of it was charged.

Both are shares of what the same number of callers cause and are charged who wait for their answers: samples times
engine calls, by the metrics of the replica, and engine seconds, by the tenant's bucket in Redis.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import redis
from PIL import Image

from serving.stores import keys
from tests.benchmarks.faults.harness import Figures, Start
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

TITLE = "callers leave while their work runs"
_TENANT = "leaver"
_REQUESTS, _IMAGES, _CALLERS = 120, 48, 4
_BURST_S = 1e4


def measure(start: Start) -> Figures:
    """One tenant whose bucket hardly refills; no cached results, and a patient gateway, lest a charge be dropped."""
    tenant = {
        "name": _TENANT,
        "api_key_sha256": [hashlib.sha256(_TENANT.encode()).hexdigest()],
        "burst_s": _BURST_S,
        "seconds_per_s": 0.0001,
    }
    with start("redis.cache=false", "redis.timeout_s=2", tenants=[tenant]) as system:
        patience = iter(lambda: 60.0, None)
        _run(system, patience)  # warm
        stayed_s, *stayed = _costs(system, patience)
        chances = random.Random(1)
        _, *left = _costs(system, iter(lambda: chances.uniform(0.2, 1.2) * stayed_s, None))
    return {
        "stages run, % of those who stay": round(100 * left[0] / stayed[0], 1),
        "charged, % of those who stay": round(100 * left[1] / stayed[1], 1),
    }


def _costs(system: System, patience_s: Iterator[float]) -> tuple[float, float, float]:
    """Median seconds of a request, samples times engine calls, and engine seconds charged."""
    stages, charged_s = _stages(system), _charged_s(system)
    median_s = _run(system, patience_s)
    return median_s, _stages(system) - stages, _charged_s(system) - charged_s


def _run(system: System, patience_s: Iterator[float]) -> float:
    bodies = [_body(seed) for seed in range(_REQUESTS)]
    with httpx.Client(base_url=system.http_url, headers={"x-api-key": _TENANT}) as http:

        def ask(body: bytes, seconds: float) -> float:
            begun_s = time.monotonic()
            with contextlib.suppress(httpx.TimeoutException):  # httpx then hangs up
                http.post("/v1/classify", content=body, headers={"content-type": "application/json"}, timeout=seconds)
            return time.monotonic() - begun_s

        with ThreadPoolExecutor(_CALLERS) as callers:
            took_s = list(callers.map(ask, bodies, [next(patience_s) for _ in bodies]))
    wait_until(lambda: system.in_flight() == 0, "no request is in flight")
    return statistics.median(took_s)


def _stages(system: System) -> float:
    return system.metrics().total("vireo_stage_batch_size_sum", model=MODEL)


def _charged_s(system: System) -> float:
    """Engine seconds alone: decoding is charged to the same bucket, and counted."""
    client = redis.Redis(unix_socket_path=str(system.run_dir / "redis" / "redis.sock"))

    def settled() -> bool:
        return not list(client.scan_iter("*reservation*"))

    wait_until(settled, "every reservation is settled")
    time.sleep(1.0)  # what is charged in the background
    level_s = float(client.hget(keys.bucket(_TENANT), "seconds") or _BURST_S)
    return _BURST_S - level_s - system.metrics().total("vireo_decode_seconds_total", tenant=_TENANT)


def _body(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (_IMAGES, 32, 32, 3), dtype=np.uint8)
    images = ",".join(f'"{base64.b64encode(_png(each)).decode()}"' for each in pixels)
    return f'{{"model": "{MODEL}", "images": [{images}]}}'.encode()


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
