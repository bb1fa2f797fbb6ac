"""The front door with a fake behind it, on real ports and a thread of its own: for clients that block."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import uvicorn

from serving.front.auth import Authenticator
from serving.front.grpc.registration import add_health_to_server, add_vireo_to_server
from serving.gateway.grpc import GrpcMethods
from serving.gateway.http import build_http_app
from serving.limits import IngressLimits
from tests.support.clients import metrics_page
from tests.support.fake_service import FakeService, joined
from tests.support.waiting import until

START_TIMEOUT_S = 20.0


@dataclass
class ServedDoor:
    """Where it listens, and the loop on which its service lives."""

    service: FakeService
    http_port: int
    grpc_port: int
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def open_gate(self, position: int) -> None:
        """Let the answers go on that wait before token ``position``."""
        self.loop.call_soon_threadsafe(self.service.chat_gates[position].set)


@contextmanager
def served(service: FakeService, authenticator: Authenticator | None = None) -> Iterator[ServedDoor]:
    """Serve until the context ends."""
    doors: list[ServedDoor] = []
    is_up, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(_serve(service, authenticator or Authenticator({}, True), stop, doors, is_up))
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_up.wait(START_TIMEOUT_S), "the front door did not open"
        yield doors[0]
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _serve(
    service: FakeService,
    authenticator: Authenticator,
    stop: asyncio.Event,
    doors: list[ServedDoor],
    is_up: threading.Event,
) -> None:
    limits, behind = IngressLimits(), joined(service)
    app = build_http_app(behind, authenticator, limits, metrics_page)
    methods = GrpcMethods(service=behind, authenticator=authenticator, limits=limits)
    rpc = grpc.aio.server()
    add_vireo_to_server(methods, rpc)
    add_health_to_server(methods, rpc)
    grpc_port = rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
        http = uvicorn.Server(config)
        task = asyncio.create_task(http.serve([listener]))
        await until(lambda: http.started)
        doors.append(ServedDoor(service, listener.getsockname()[1], grpc_port, asyncio.get_running_loop()))
        is_up.set()
        await stop.wait()
        for gate in service.chat_gates.values():
            gate.set()
        http.should_exit = True
        await task
        await rpc.stop(None)
