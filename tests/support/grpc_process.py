"""A gRPC server with the front door's methods, set up as Ray sets up its own, in a process with a limit on its memory.

Run: ``python -m tests.support.grpc_process EXTRA_MIB``. Prints its port, serves until its standard input is closed, and
then prints by how many bytes its resident memory was ever above that of its start.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import os
import resource
import sys
from pathlib import Path
from typing import Any

import grpc

from serving.app import GRPC_SERVICERS
from serving.front.auth import Authenticator
from serving.front.grpc.registration import take_no_compression
from tests.support.clients import FrontDoor

KEY = "key-of-ada"
PAGE = os.sysconf("SC_PAGE_SIZE")


def limit_memory(extra_mib: int) -> None:
    """Allow so much more address space than there is."""
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * PAGE + (extra_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def options() -> list[tuple[str, Any]]:
    """Those of Ray's servers in a process in which ours has been called."""
    from ray.serve._private.constants import DEFAULT_GRPC_SERVER_OPTIONS

    take_no_compression()
    return list(DEFAULT_GRPC_SERVER_OPTIONS)


async def serve(extra_mib: int) -> None:
    keys = {"ada": hashlib.sha256(KEY.encode()).hexdigest()}
    door = FrontDoor(authenticator=Authenticator(keys, False))
    server = grpc.aio.server(options=options())
    for name in GRPC_SERVICERS:
        module, _, function = name.rpartition(".")
        getattr(importlib.import_module(module), function)(door.methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    limit_memory(extra_mib)
    before = peak_bytes()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    print(peak_bytes() - before, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
