"""Records and payloads for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from vireo_pb.vireo.v1 import vireo_pb2_grpc

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


@asynccontextmanager
async def served_grpc(servicer: vireo_pb2_grpc.VireoServicer) -> AsyncIterator[str]:
    """A server of its own; yields its address."""
    server = grpc.aio.server()
    vireo_pb2_grpc.add_VireoServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
