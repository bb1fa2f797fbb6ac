"""A stranger sends compressed messages of empty elements over gRPC, while a tenant classifies.

61 KB of gzip are 60 MB of protobuf. Nobody knows the stranger, who needs no key for the damage.
"""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import httpx

from tests.benchmarks.faults.harness import Figures, Start, gateways, memory_of, watched
from tests.support.media_files import encode, gradient
from tests.support.system import MODEL, System

TITLE = "gRPC before the key: 8 calls of 61 KB"

KEY = "key-of-the-victim"
NUM_CALLS = 8
BOMB = b"\x12\x00" * (30 << 20)
METHODS = ("/vireo.v1.Vireo/Classify", "/vireo.v1.Vireo/Chat", "/inference.GRPCInferenceService/ModelInfer")
MAX_PROCESS_BYTES = 16 << 30
"""Address space. A process that wants more gets none, for the sake of the machine."""


def measure(start: Start) -> Figures:
    """Watch one tenant's calls over HTTP, and the memory of the gateways, while the stranger calls."""
    tenants = [{"name": "victim", "api_key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()]}]
    with _bounded_memory(), start("gateway.replicas=1", tenants=tenants) as system:
        call = _classify(system)
        for _ in range(20):
            call()
        with watched(call) as calm:
            time.sleep(3.0)
        with memory_of(lambda: gateways(system)) as memory, watched(call) as seen:
            time.sleep(0.5)
            answers = _attack(system.grpc_address)
            time.sleep(0.5)
        return {
            "victim's worst call alone, ms": calm.worst_ms,
            "victim's worst call, ms": seen.worst_ms,
            "victim's failed calls": seen.failed,
            "gateway memory, MiB more": memory.growth,
            "the stranger is told": ", ".join(sorted(set(answers))),
        }


def _classify(system: System) -> Callable[[], object]:
    client = httpx.Client(base_url=system.http_url, headers={"authorization": f"Bearer {KEY}"}, timeout=120.0)
    files = {"file": ("x.png", encode(gradient(40, 40)), "image/png")}
    return lambda: client.post("/v1/classify", data={"model": MODEL}, files=files).raise_for_status()


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """For whatever is started meanwhile, each process by itself."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_PROCESS_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _attack(address: str) -> list[str]:
    """Make the calls at once. Returns the status of each."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel, ThreadPoolExecutor(NUM_CALLS) as pool:

        def call(index: int) -> str:
            rpc = channel.unary_unary(METHODS[index % len(METHODS)])
            try:
                rpc(BOMB, timeout=240.0, compression=grpc.Compression.Gzip)
            except grpc.RpcError as error:
                return str(error.code().name)  # type: ignore[attr-defined]
            return "OK"

        return list(pool.map(call, range(NUM_CALLS)))
