"""The door of a system while HAProxies come and go: real ones, started by the code of Ray Serve that starts them.

A ``HAProxyApi`` is what an actor of Ray has; a second one of the same paths is that of the actor which replaces it.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import httpx
import psutil
import pytest
from ray.serve._private import haproxy as rays
from ray.serve._private.common import RequestProtocol
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.generated import serve_pb2

from serving.config import from_mapping, resolve
from serving.system.door_keeper import DoorKeeper
from serving.system.haproxy import build_keeper, write_wrapper
from tests.support.system import free_service_ports, short_folder
from tests.support.waiting import wait_until

RPC = "/vireo.v1.Vireo/Chat"
HEALTH = "/ray.serve.RayServeAPIService/Healthz"


class Gateway:
    """Answers every HTTP request and every RPC with its name."""

    def __init__(self, name: str) -> None:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("x-request-id", self.headers.get("x-request-id", "own"))
                self.send_header("content-length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Rpcs(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
                healthy = serve_pb2.HealthzResponse(message="success").SerializeToString()
                answer = healthy if details.method == HEALTH else name.encode()
                return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.rpc = grpc.server(ThreadPoolExecutor(4))
        self.rpc.add_generic_rpc_handlers((Rpcs(),))
        self.rpc_port = self.rpc.add_insecure_port("127.0.0.1:0")
        self.rpc.start()
        Thread(target=self.http.serve_forever, daemon=True).start()

    def backends(self) -> dict[str, rays.BackendConfig]:
        """As Ray has them for the one application."""
        kinds = [
            ("http-vireo", self.http.server_port, RequestProtocol.HTTP),
            ("grpc-vireo", self.rpc_port, RequestProtocol.GRPC),
        ]
        return {
            name: rays.BackendConfig(
                name=name,
                path_prefix="/",
                app_name="vireo",
                protocol=protocol,
                servers=[rays.ServerConfig(name="gateway", host="127.0.0.1", port=port)],
            )
            for name, port, protocol in kinds
        }

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.rpc.stop(None)


@dataclass
class Door:
    """What a system has of one: the keeper, the script in HAProxy's place, and ports."""

    folder: Path
    keeper: DoorKeeper
    port: int
    rpc_port: int
    others: tuple[int, int]
    apis: list[rays.HAProxyApi] = field(default_factory=list)

    def actor(self) -> rays.HAProxyApi:
        """A new actor's."""
        node = self.folder / "n"
        config = rays.HAProxyConfig(
            http_options=HTTPOptions(host="127.0.0.1", port=self.port),
            grpc_options=gRPCOptions(port=self.rpc_port, grpc_servicer_functions=["x"]),
            socket_path=str(node / "a"),
            server_state_base=str(node),
            server_state_file=str(node / "server-state"),
            metrics_socket_path=str(node / "m"),
            metrics_port=self.others[0],
            stats_port=self.others[1],
        )
        api = rays.HAProxyApi(cfg=config, config_file_path=str(node / "haproxy.cfg"))
        self.apis.append(api)
        return api

    async def opened(self, gateway: Gateway) -> rays.HAProxyApi:
        """An actor whose HAProxy leads to the gateway."""
        api = self.actor()
        await api.start()
        api.set_backend_configs(gateway.backends())
        await api.reload()
        return api

    async def ask(self, **headers: str) -> httpx.Response:
        """Over a new connection. Raises: httpx.HTTPError: the door is shut."""
        async with httpx.AsyncClient() as client:
            return await client.get(f"http://127.0.0.1:{self.port}/v1/models", headers=headers)

    async def call(self) -> bytes:
        """Over a new channel. Raises: grpc.aio.AioRpcError."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.rpc_port}") as channel:
            answer: bytes = await channel.unary_unary(RPC)(b"", metadata=[("x-request-id", "mine")])
            return answer

    async def answers(self, name: str) -> None:
        """Wait until both ports lead to the gateway of that name."""
        await asyncio.to_thread(wait_until, lambda: asyncio.run(self._leads_to(name)), f"the door leads to {name}")

    async def _leads_to(self, name: str) -> bool:
        try:
            return (await self.ask()).text == name and await self.call() == name.encode()
        except (httpx.HTTPError, grpc.aio.AioRpcError):
            return False

    def listeners(self) -> set[int]:
        """Pids of those that listen at the HTTP port."""
        found = psutil.net_connections("tcp")
        return {c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == self.port}


@pytest.fixture
async def door(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    port, rpc_port, *others = free_service_ports(4)
    with short_folder() as folder:
        config = resolve(from_mapping({"run_dir": str(folder), "http": {"port": port, "grpc_port": rpc_port}}))
        monkeypatch.setattr(rays, "RAY_SERVE_HAPROXY_BINARY_PATH", str(write_wrapper(config, folder)))
        keeper = build_keeper(config, folder)
        keeper.start()
        door = Door(folder, keeper, port, rpc_port, (others[0], others[1]))
        yield door
        keeper.stop()
        for api in door.apis:
            await api.stop()
        assert door.listeners() == set()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway("one")
    yield made
    made.stop()


@pytest.fixture
def other_gateway() -> Iterator[Gateway]:
    made = Gateway("two")
    yield made
    made.stop()


async def kill(api: rays.HAProxyApi) -> None:
    assert api._proc is not None
    api._proc.kill()
    await api._proc.wait()


async def test_killed_haproxy_is_stood_in_for_until_rays_next_takes_the_door_over(door: Door, gateway: Gateway) -> None:
    await kill(await door.opened(gateway))
    await door.answers("one")
    (stand_in,) = door.listeners()

    following = door.actor()  # it knows of no gateway yet
    await following.start()
    assert following._proc is not None
    assert ((await door.ask()).text, await door.call()) == ("one", b"one"), "no moment without a gateway"
    assert await following.is_running()
    await asyncio.to_thread(wait_until, lambda: not psutil.pid_exists(stand_in), "the stand-in is gone")
    assert door.listeners() == {following._proc.pid}

    following.set_backend_configs(gateway.backends())
    await following.reload()
    await door.answers("one")
    await kill(following)
    await door.answers("one")


async def test_requests_while_the_door_changes_hands_are_all_answered(door: Door, gateway: Gateway) -> None:
    await kill(await door.opened(gateway))
    await door.answers("one")
    told: list[str] = []

    async def ask() -> None:
        while True:
            told.append((await door.ask()).text)

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    following = await door.opened(gateway)
    await asyncio.to_thread(wait_until, lambda: door.listeners() == {following._proc.pid}, "the door is Ray's again")
    for task in asking:
        task.cancel()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
    assert set(told) == {"one"}


async def test_stand_in_follows_what_ray_writes_meanwhile(door: Door, gateway: Gateway, other_gateway: Gateway) -> None:
    api = await door.opened(gateway)
    await kill(api)
    await door.answers("one")
    api.set_backend_configs(other_gateway.backends())
    with pytest.raises(RuntimeError, match="reload"):  # Ray cannot; it has written what it wanted
        await api.reload()
    await door.answers("two")


async def test_killed_stand_in_is_replaced(door: Door, gateway: Gateway) -> None:
    await kill(await door.opened(gateway))
    for _ in range(2):
        await door.answers("one")
        (stand_in,) = door.listeners()
        psutil.Process(stand_in).kill()
        await asyncio.to_thread(wait_until, lambda pid=stand_in: door.listeners() - {pid}, "another stands in")
    await door.answers("one")


async def test_reload_needs_no_stand_in_and_a_closed_door_stays_shut(door: Door, gateway: Gateway) -> None:
    api = await door.opened(gateway)
    await api.reload()
    assert api._proc is not None
    await asyncio.to_thread(wait_until, lambda: door.listeners() == {api._proc.pid}, "only the new one listens")
    assert not (door.folder / "n" / "stand-in.cfg").exists()
    door.keeper.close()
    await kill(api)
    with pytest.raises(httpx.ConnectError):
        await door.ask()
    door.keeper.stop()
    assert door.listeners() == set()
    assert not (door.folder / "n" / "stand-in.cfg").exists()


async def test_without_a_gateway_http_is_told_when_to_come_back(door: Door) -> None:
    await door.actor().start()
    answer = await door.ask(**{"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (503, "mine")
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "type", "param"}
    assert error["code"] == "not_ready"
    fresh = [(await door.ask(**headers)).headers["x-request-id"] for headers in ({}, {"x-request-id": "a b"})]
    assert len(set(fresh)) == 2
    assert all(len(value) == 36 for value in fresh)


async def test_without_a_gateway_rpcs_are_told_when_to_come_back(door: Door) -> None:
    await door.actor().start()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.call()
    assert_unavailable(caught.value)


async def test_a_gateway_that_is_gone_is_told_alike(door: Door, gateway: Gateway) -> None:
    await door.opened(gateway)
    gateway.stop()
    answer = await door.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert answer.headers["x-request-id"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.call()
    assert_unavailable(caught.value)


async def test_answers_of_a_gateway_have_the_id_that_it_was_given(door: Door, gateway: Gateway) -> None:
    await door.opened(gateway)
    assert (await door.ask(**{"x-request-id": "mine"})).headers.get_list("x-request-id") == ["mine"]
    (given,) = (await door.ask()).headers.get_list("x-request-id")
    assert given != "own", "the gateway has got the id that HAProxy gave"


def assert_unavailable(error: grpc.aio.AioRpcError) -> None:
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    trailers = {**dict(error.initial_metadata() or ()), **dict(error.trailing_metadata() or ())}
    assert trailers["retry-after-ms"] == "1000"
    assert trailers["x-request-id"] == "mine"
    data = trailers["vireo-error-bin"]
    told = json.loads(data if isinstance(data, bytes) else base64.b64decode(data))
    assert (told["code"], told["message"]) == ("not_ready", error.details())
