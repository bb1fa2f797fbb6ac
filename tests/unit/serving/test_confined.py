"""Calls in processes of their own: what one call runs into is its own affair."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving.confined import Confined, Limit, LimitReached
from serving.errors import BackendError, QueueFull
from tests.support.waiting import until

MEMORY_BYTES = 64 << 20


def make_function(argument: str) -> Callable[[bytearray], bytes]:
    """What the process calls: does as it is told."""

    def function(request: bytearray) -> bytes:
        word, _, rest = bytes(request).partition(b" ")
        if word == b"memory":
            return bytes(int(rest))
        if word == b"spin":
            while True:
                pass
        if word == b"raise":
            raise ValueError("secret")
        if word == b"abort":
            os.abort()
        if word == b"pid":
            return b"%d" % os.getpid()
        if word == b"environment":
            return " ".join(os.environ).encode()
        if word == b"wait":
            seconds, _, path = rest.decode().partition(" ")
            if path:
                Path(path).touch()
            threading.Event().wait(float(seconds))
        return argument.encode() + b":" + rest

    return function


@pytest.fixture
def confined() -> Iterator[Confined]:
    calls = Confined(
        "tests.unit.serving.test_confined:make_function",
        "told",
        memory_bytes=MEMORY_BYTES,
        timeout_s=1.0,
        max_waiting=1,
    )
    yield calls
    calls.close()


async def test_parts_are_joined_and_bytes_come_back(confined: Confined) -> None:
    assert confined.pids == []
    assert await confined.call(b"echo ", memoryview(b"abc"), bytearray(b"def")) == b"told:abcdef"
    assert await confined.call(b"pid") == str(confined.pids[0]).encode()


async def test_too_much_memory_ends_the_call_and_the_next_one_is_answered(confined: Confined) -> None:
    assert len(await confined.call(b"memory %d" % (MEMORY_BYTES // 2))) == MEMORY_BYTES // 2
    with pytest.raises(LimitReached) as caught:
        await confined.call(b"memory %d" % (2 * MEMORY_BYTES))
    assert caught.value.limit is Limit.MEMORY
    assert await confined.call(b"echo x") == b"told:x"


async def test_request_that_does_not_fit_into_memory_ends_alone(confined: Confined) -> None:
    with pytest.raises(LimitReached) as caught:
        await confined.call(bytes(2 * MEMORY_BYTES))
    assert caught.value.limit is Limit.MEMORY
    assert await confined.call(b"echo x") == b"told:x"


async def test_library_that_aborts_counts_as_out_of_memory(confined: Confined) -> None:
    with pytest.raises(LimitReached) as caught:
        await confined.call(b"abort")
    assert caught.value.limit is Limit.MEMORY
    assert await confined.call(b"echo x") == b"told:x"


async def test_call_that_takes_too_long_is_ended_by_its_own_alarm_clock(confined: Confined) -> None:
    await confined.call(b"pid")
    process = psutil.Process(confined.pids[0])
    with pytest.raises(LimitReached) as caught:
        await confined.call(b"spin")
    assert caught.value.limit is Limit.TIME
    assert not process.is_running()
    assert await confined.call(b"echo x") == b"told:x"


async def test_what_the_function_raises_stays_inside(confined: Confined, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError) as caught:
        await confined.call(b"raise")
    assert "secret" not in caught.value.message
    assert "secret" in capfd.readouterr().err


async def test_process_killed_from_outside_fails_its_call_alone(confined: Confined, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    call = asyncio.create_task(confined.call(f"wait 30 {begun}".encode()))
    await until(begun.exists)
    psutil.Process(confined.pids[0]).kill()
    with pytest.raises(BackendError):
        await call
    assert await confined.call(b"echo x") == b"told:x"


async def test_process_that_died_between_calls_is_replaced_and_its_socket_closed(confined: Confined) -> None:
    dead = psutil.Process(int(await confined.call(b"pid")))
    dead.kill()
    dead.wait()
    assert await confined.call(b"echo x") == b"told:x"
    assert len(confined.pids) == 1
    gc.collect()  # an open socket is a ResourceWarning here, which fails the test


async def test_calls_wait_in_order_and_one_too_many_is_refused(confined: Confined) -> None:
    calls = [asyncio.create_task(confined.call(b"echo %d" % i)) for i in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await confined.call(b"echo 2")
    assert await asyncio.gather(*calls) == [b"told:0", b"told:1"]
    assert await confined.call(b"echo 3") == b"told:3"


async def test_process_sees_no_secrets(confined: Confined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_SECRET", "x")
    assert b"VIREO_SECRET" not in await confined.call(b"environment")


async def test_process_ends_with_its_owner(confined: Confined) -> None:
    await confined.call(b"pid")
    process = psutil.Process(confined.pids[0])
    confined.close()
    assert not process.is_running()
