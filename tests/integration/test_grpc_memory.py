"""What callers cost a gateway's own gRPC port, before which no HAProxy stands: a server that may grow by 512 MiB."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc import StatusCode
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.front.grpc.registration import SERVICES, methods_of, needs_key, path_of
from tests.support.clients import GOOD_LABEL, GOOD_PNG
from tests.support.fake_service import MODEL
from tests.support.grpc_process import KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

METHODS = [method for service in SERVICES for method in methods_of(service)]
EXTRA_MIB = 512
BOMB = b"\x12\x00" * (30 << 20)
"""60 MB of empty elements, 61 KB of gzip."""
KEYED = (("x-api-key", KEY),)
UNLIMITED = [("grpc.max_send_message_length", -1)]


@dataclass
class Server:
    channel: grpc.Channel
    grown_bytes: int = 0

    def call(self, method: MethodDescriptor, data: bytes, **options: object) -> StatusCode:
        """Make a call with one message; return its status, or OK with the first answer of a stream."""
        call = self.channel.unary_stream(path_of(method))(data, timeout=60, **options)
        try:
            for _ in call:
                if method.server_streaming:
                    call.cancel()
                    break
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined, no-any-return]
        return StatusCode.OK

    def answers(self) -> bool:
        """Whether a good call is answered well."""
        stub = vireo_pb2_grpc.VireoStub(self.channel)
        request = vireo_pb2.ClassifyRequest(model=MODEL, images=[GOOD_PNG])
        return bool(stub.Classify(request, metadata=KEYED, timeout=60).results[0].label == GOOD_LABEL)


@contextmanager
def served(extra_mib: int = EXTRA_MIB) -> Iterator[Server]:
    command = [sys.executable, "-m", "tests.support.grpc_process", str(extra_mib)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
                server = Server(channel)
                yield server
            output, _ = process.communicate("", timeout=60)
            assert process.returncode == 0
            server.grown_bytes = int(output)
        finally:
            process.kill()


def test_compressed_messages_are_refused_by_their_metadata_and_never_expanded() -> None:
    with served() as server:
        for method in METHODS:
            for metadata in ((), KEYED):
                status = server.call(method, BOMB, metadata=metadata, compression=grpc.Compression.Gzip)
                assert status is StatusCode.UNIMPLEMENTED, path_of(method)
        assert server.answers()
    assert server.grown_bytes < 64 << 20


@pytest.mark.parametrize("metadata", [(), (("x-api-key", "wrong"),)], ids=["no key", "wrong key"])
def test_message_of_a_caller_without_a_key_is_not_received(metadata: tuple[tuple[str, str], ...]) -> None:
    with served() as server:
        for method in filter(needs_key, METHODS):
            status = server.call(method, BOMB, metadata=metadata)
            assert status is StatusCode.UNAUTHENTICATED, path_of(method)
        assert server.answers()
    assert server.grown_bytes < 64 << 20


def test_message_with_a_key_is_counted_and_not_parsed() -> None:
    """Its bytes are received, two or three times over while gRPC joins them, and no object is made of any: parsed, each
    of these would take half a gigabyte, or several."""
    with served(2 * EXTRA_MIB) as server:
        for method in filter(needs_key, METHODS):
            if not method.client_streaming:  # streams answer in a message
                assert server.call(method, BOMB, metadata=KEYED) is StatusCode.INVALID_ARGUMENT, path_of(method)
        assert server.answers()
