"""More than fits is refused at once and by name; the rest is answered; and a client that leaves takes nothing along."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from vireo_pb.vireo.v1 import vireo_pb2

from tests.e2e.conftest import CALLS_ON_THE_WAY, Picture
from tests.e2e.surfaces import SURFACES, UNARY, Door
from tests.support.clients import Ask, vireo_message
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MAX_IN_FLIGHT = 4


def settle(system: System, door: Door, picture: Picture) -> None:
    """Nothing is under way, and HAProxy knows by an answer that the caller may have all places again."""
    wait_until(lambda: system.in_flight() == 0, "an idle system")
    wait_until(lambda: UNARY["http_json"](door, Ask([picture[0]], model=MODEL)).error is None, "an answer")


@contextmanager
def paused(system: System) -> Iterator[None]:
    """Hold the classifier still: what is sent meanwhile stays in flight for certain."""
    (process,) = system.replicas(MODEL)
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", sorted(UNARY))
def test_request_beyond_max_in_flight_is_refused_and_the_others_are_answered(
    name: str, strict: System, alpha: Door, new_picture: Callable[[], Picture]
) -> None:
    wait_until(lambda: strict.in_flight() == 0, "an idle system")
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as pool:
        with paused(strict):
            pictures = [new_picture() for _ in range(MAX_IN_FLIGHT)]
            waiting = [pool.submit(UNARY[name], alpha, Ask([data], model=MODEL)) for data, _ in pictures]
            wait_until(lambda: strict.in_flight() == MAX_IN_FLIGHT, "all slots taken")
            refused = UNARY[name](alpha, Ask([new_picture()[0]], model=MODEL))
        assert refused.error == "queue_full"
        assert "as many requests of yours as it takes" in refused.message, "HAProxy knows the gateway's places"
        assert "retry in" in refused.message
        if refused.status == 429:
            assert int(refused.extra["retry-after"]) >= 1
        else:
            assert refused.status == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(refused.extra["retry-after-ms"]) >= 1
        assert [future.result().codes for future in waiting] == [(label,) for _, label in pictures]
    wait_until(lambda: strict.in_flight() == 0, "in-flight gauge back to 0")


def test_tenant_that_fills_the_gateway_is_refused_and_a_newcomer_is_answered(
    strict: System, alpha: Door, beta: Door, new_picture: Callable[[], Picture]
) -> None:
    wait_until(lambda: strict.in_flight() == 0, "an idle system")
    with ThreadPoolExecutor(MAX_IN_FLIGHT + 1) as pool:
        with paused(strict):
            pictures = [new_picture() for _ in range(MAX_IN_FLIGHT)]
            waiting = [pool.submit(UNARY["http_json"], alpha, Ask([data], model=MODEL)) for data, _ in pictures]
            wait_until(lambda: strict.in_flight() == MAX_IN_FLIGHT, "all slots taken")
            data, label = new_picture()
            newcomer = pool.submit(UNARY["http_json"], beta, Ask([data], model=MODEL))
            wait_until(lambda: strict.in_flight() == MAX_IN_FLIGHT + 1, "the newcomer waits")
            for name, reason in (("http_json", "as it takes at a time"), ("grpc_vireo", "2 of them for you")):
                refused = UNARY[name](alpha, Ask([new_picture()[0]], model=MODEL))
                assert refused.error == "queue_full"
                assert reason in refused.message
        assert newcomer.result().codes == (label,)
        assert [future.result().codes for future in waiting] == [(label,) for _, label in pictures]
    settle(strict, alpha, new_picture())


def test_images_beyond_the_replicas_queue_fail_alone(
    strict: System, alpha: Door, new_picture: Callable[[], Picture]
) -> None:
    pictures = [new_picture() for _ in range(40)]
    answer = SURFACES["grpc_vireo"](alpha, Ask([data for data, _ in pictures], model=MODEL))
    assert answer.error is None
    assert set(answer.codes) - {"queue_full"} <= {label for _, label in pictures}
    assert answer.codes.count("queue_full") >= 1
    answered = [code == label for code, (_, label) in zip(answer.codes, pictures, strict=True) if code != "queue_full"]
    assert len(answered) >= 8
    assert all(answered)
    assert SURFACES["http_json"](alpha, Ask([new_picture()[0]], model=MODEL)).error is None


def test_http_client_that_leaves_frees_its_slot(
    strict: System, alpha: Door, new_picture: Callable[[], Picture]
) -> None:
    wait_until(lambda: strict.in_flight() == 0, "an idle system")
    exits = strict.metrics().total("vireo_exits_total")
    with paused(strict):
        for _ in range(2):  # twice as many as fit at a time
            sockets = [send_classify(alpha, new_picture()[0]) for _ in range(MAX_IN_FLIGHT)]
            wait_until(lambda: strict.in_flight() == MAX_IN_FLIGHT, "all slots taken")
            for connection in sockets:
                connection.close()
            wait_until(lambda: strict.in_flight() == 0, "all slots free, while the replica hangs")
    check_none_that_waited_was_run(strict, alpha, exits, new_picture)


def send_classify(door: Door, picture: bytes) -> socket.socket:
    """Send a request and do not wait for the answer."""
    import base64
    import json

    body = json.dumps({"model": MODEL, "image": base64.b64encode(picture).decode()}).encode()
    head = [f"{name}: {value}" for name, value in door.headers.items()]
    lines = [
        "POST /v1/classify HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    connection = socket.create_connection(("127.0.0.1", door.system.port), timeout=10)
    connection.sendall("\r\n".join([*lines, *head, "", ""]).encode() + body)
    return connection


def check_none_that_waited_was_run(
    strict: System, alpha: Door, exits: float, new_picture: Callable[[], Picture]
) -> None:
    """After the replica goes on: one request is answered, and none of those that waited at the gateway has been run.

    The calls that were on their way when the replica was held may be begun before it reads that their callers left.
    """
    assert SURFACES["http_json"](alpha, Ask([new_picture()[0]], model=MODEL)).error is None
    now = wait_until(lambda: (n := strict.metrics().total("vireo_exits_total")) > exits and n, "the answer's exit")
    assert now <= exits + 1 + CALLS_ON_THE_WAY


def test_cancelled_grpc_call_frees_its_slot(strict: System, alpha: Door, new_picture: Callable[[], Picture]) -> None:
    wait_until(lambda: strict.in_flight() == 0, "an idle system")
    exits = strict.metrics().total("vireo_exits_total")
    with paused(strict):
        for _ in range(2):
            calls = [
                alpha.vireo.Classify.future(
                    vireo_pb2.ClassifyRequest(model=MODEL, images=[new_picture()[0]]),
                    metadata=alpha.metadata,
                    timeout=60,
                )
                for _ in range(MAX_IN_FLIGHT)
            ]
            wait_until(lambda: strict.in_flight() == MAX_IN_FLIGHT, "all slots taken")
            for call in calls:
                call.cancel()
            wait_until(lambda: strict.in_flight() == 0, "all slots free, while the replica hangs")
    check_none_that_waited_was_run(strict, alpha, exits, new_picture)


def test_stream_whose_client_leaves_frees_everything(
    strict: System, alpha: Door, new_picture: Callable[[], Picture]
) -> None:
    wait_until(lambda: strict.in_flight() == 0, "an idle system")
    exits = strict.metrics().total("vireo_exits_total")
    go_on = threading.Event()

    def requests() -> Iterator[vireo_pb2.ClassifyRequest]:
        for number in range(3):
            yield vireo_message(Ask([new_picture()[0]], model=MODEL), str(number))
        go_on.wait(60)  # the stream stays open until it is cancelled

    with paused(strict):
        stream = alpha.vireo.ClassifyStream(requests(), metadata=alpha.metadata, timeout=60)
        wait_until(lambda: strict.in_flight() == 3, "three requests of the stream in flight")
        stream.cancel()
        wait_until(lambda: strict.in_flight() == 0, "all slots free, while the replica hangs")
    go_on.set()
    check_none_that_waited_was_run(strict, alpha, exits, new_picture)
