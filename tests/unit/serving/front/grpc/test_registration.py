"""Our services on Ray Serve's own kind of gRPC server."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from ray.serve._private import constants
from ray.serve._private.grpc_util import get_service_names, gRPCGenericServer
from ray.serve._private.http_util import configure_http_middlewares
from ray.serve._private.proxy_request_response import gRPCStreamingType
from ray.serve.config import HTTPOptions
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.app import GRPC_SERVICERS
from serving.front.grpc.registration import SERVICES, methods_of, path_of, take_no_compression
from serving.gateway.before_ray import BeforeRay
from serving.system.ray_env import BEFORE_RAY


def add_all(server: gRPCGenericServer) -> None:
    """As Ray does: each function by its name, with something in the place of a servicer."""
    for name in GRPC_SERVICERS:
        module, _, function = name.rpartition(".")
        getattr(importlib.import_module(module), function)(_Anything(), server)


class _Anything:
    def __getattr__(self, name: str) -> Any:
        return object()


async def test_ray_leaves_the_requests_of_every_method_unread_and_unparsed() -> None:
    server = gRPCGenericServer(lambda service_method, streaming_type: (service_method, streaming_type))
    add_all(server)
    handlers: dict[str, Any] = {}
    for (generic,) in server.generic_rpc_handlers:
        handlers |= generic._method_handlers  # type: ignore[attr-defined]
    assert set(handlers) == {path_of(method) for service in SERVICES for method in methods_of(service)}
    for service in SERVICES:
        for method in methods_of(service):
            handler = handlers[path_of(method)]
            assert handler.request_deserializer is None
            assert (handler.request_streaming, handler.response_streaming) == (True, method.server_streaming)
            streaming = gRPCStreamingType.STREAM_STREAM if method.server_streaming else gRPCStreamingType.STREAM_UNARY
            used = handler.stream_stream if method.server_streaming else handler.stream_unary
            assert used == (path_of(method), streaming)


async def test_ray_finds_the_names_of_our_services() -> None:
    server = gRPCGenericServer(lambda service_method, streaming_type: None)
    add_all(server)
    assert get_service_names(server.generic_rpc_handlers) == {service.full_name for service in SERVICES}


@pytest.fixture
def rays_options(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The list that Ray's servers are made with, as it was."""
    options = constants.DEFAULT_GRPC_SERVER_OPTIONS
    before = list(options)
    monkeypatch.setattr("ray.serve._private.http_util.RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", BEFORE_RAY)
    options[:] = [option for option in before if option[0] != "grpc.compression_enabled_algorithms_bitset"]
    yield options
    options[:] = before


async def test_servers_that_ray_starts_after_its_callback_refuse_compressed_calls(rays_options: list[Any]) -> None:
    (middleware,) = configure_http_middlewares(HTTPOptions()).middlewares
    assert middleware.cls is BeforeRay
    called: list[str] = []

    def factory(service_method: str, streaming_type: gRPCStreamingType) -> Any:
        async def handler(requests: AsyncIterator[bytes], context: Any) -> bytes:
            called.append(service_method)
            return b""

        return handler

    server = gRPCGenericServer(factory)
    add_all(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        classify = vireo_pb2_grpc.VireoStub(channel).Classify
        request = vireo_pb2.ClassifyRequest(images=[bytes(1000)])
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await classify(request, compression=grpc.Compression.Gzip)
        assert refusal.value.code() is StatusCode.UNIMPLEMENTED
        assert await classify(request) == vireo_pb2.ClassifyResponse()
    await server.stop(None)
    assert "/vireo.v1.Vireo/Classify" in called


def test_compression_is_taken_away_once(rays_options: list[Any]) -> None:
    for _ in range(2):
        take_no_compression()
    assert [name for name, _ in rays_options].count("grpc.compression_enabled_algorithms_bitset") == 1
