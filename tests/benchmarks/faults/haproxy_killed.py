"""HAProxy is killed while a caller asks over HTTP and another over gRPC: how long is the door shut?"""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Callable

import grpc
import httpx
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from tests.benchmarks.faults.harness import Figures, Start, watched
from tests.support.media_files import encode, noise
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

TITLE = "HAProxy killed"
_CALM_S = 10.0
"""Watched for so long after everything answers again: what comes back may go once more."""
_PATIENCE_S = 90.0


def measure(start: Start) -> Figures:
    """Kill it once, wait until a HAProxy of Ray's own stands there again, and watch for a while longer."""
    with start() as system:
        wait_until(lambda: len(system.named("haproxy")) == 1, "one HAProxy, no longer that of the start")
        (victim,) = system.named("haproxy")
        parent = victim.parent()
        http, rpc = _http(system), _rpc(system)
        http(), rpc()
        with watched(http) as web, watched(rpc) as calls:
            time.sleep(2.0)
            victim.kill()
            wait_until(lambda: _is_back(system, parent.pid if parent else 0), "Ray's own HAProxy", _PATIENCE_S)
            time.sleep(_CALM_S)
        return {
            "HTTP: longest time without an answer, s": round(web.longest_gap_s, 2),
            "gRPC: longest time without an answer, s": round(calls.longest_gap_s, 2),
            "HTTP calls failed": web.failed,
            "gRPC calls failed": calls.failed,
        }


def _is_back(system: System, dead_parent: int) -> bool:
    """Whether a HAProxy lives that an actor of Ray has started after the fault, and requests reach a gateway."""
    parents = [process.parent() for process in system.named("haproxy")]
    names = [parent.name() for parent in parents if parent is not None and parent.pid != dead_parent]
    return any(name.startswith("ray::HAProxy") for name in names) and system.is_ready()


def _http(system: System) -> Callable[[], object]:
    """A new connection for each call: a caller that has just come."""
    pictures = map(_picture, itertools.count())

    def call() -> object:
        document = {"model": MODEL, "images": [base64.b64encode(next(pictures)).decode()]}
        return httpx.post(f"{system.http_url}/v1/classify", json=document, timeout=30.0).raise_for_status()

    return call


def _rpc(system: System) -> Callable[[], object]:
    pictures = map(_picture, itertools.count(1_000_000))

    def call() -> object:
        with grpc.insecure_channel(system.grpc_address) as channel:
            request = vireo_pb2.ClassifyRequest(model=MODEL, images=[next(pictures)])
            return vireo_pb2_grpc.VireoStub(channel).Classify(request, timeout=30.0)

    return call


def _picture(seed: int) -> bytes:
    return encode(noise(28, 28, seed))
