"""Pixels that are passed as memory: exact, unchangeable once accepted, and nothing else is accepted."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.media import wire
from serving.media.limits import MediaLimits
from serving.media.pool import MediaPool
from serving.media.prepare import PreparedImage
from serving.media.shared_pixels import open_shared, share
from serving.media.worker_process import WorkerProcess
from tests.support import media_files as files
from tests.support.media_processors import served_processors

PIXELS = files.noise(300, 300)


@pytest.fixture
def memory() -> Iterator[int]:
    fd = share(PIXELS)
    yield fd
    os.close(fd)


def test_what_was_shared_is_read_and_outlives_the_descriptor() -> None:
    fd = share(PIXELS)
    mapped = open_shared(fd, PIXELS.nbytes)
    os.close(fd)
    np.testing.assert_array_equal(np.frombuffer(mapped, np.uint8).reshape(PIXELS.shape), PIXELS)


def mapped_bytes() -> int:
    """Of memory that was shared, in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "vireo-pixels" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def test_memory_is_freed_with_the_last_array_on_it() -> None:
    before = mapped_bytes()
    fd = share(PIXELS)
    array = np.frombuffer(open_shared(fd, PIXELS.nbytes), np.uint8)
    os.close(fd)
    part = array[5:10]
    del array
    gc.collect()
    assert mapped_bytes() > before
    assert part.tolist() == PIXELS.reshape(-1)[5:10].tolist()
    del part
    gc.collect()
    assert mapped_bytes() == before


def test_nobody_can_change_or_cut_off_what_was_accepted(memory: int) -> None:
    mapped = open_shared(memory, PIXELS.nbytes)
    for attack in (
        lambda: os.pwrite(memory, b"\0" * 100, 0),
        lambda: os.ftruncate(memory, 0),
        lambda: os.ftruncate(memory, PIXELS.nbytes + 1),
        lambda: mmap.mmap(memory, PIXELS.nbytes).close(),
    ):
        with pytest.raises(PermissionError):
            attack()
    assert bytes(mapped) == PIXELS.tobytes()


def test_memory_that_somebody_can_still_write_is_refused(memory: int) -> None:
    with mmap.mmap(memory, PIXELS.nbytes), pytest.raises(OSError, match="busy"):
        open_shared(memory, PIXELS.nbytes)


@pytest.mark.parametrize("error", [-1, 1])
def test_memory_of_another_size_is_refused(memory: int, error: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        open_shared(memory, PIXELS.nbytes + error)


def test_descriptor_of_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(PIXELS.tobytes())
    fd = os.open(tmp_path / "file", os.O_RDWR)
    reading, writing = os.pipe()
    unsealable = os.memfd_create("x")
    try:
        for descriptor in (fd, reading, unsealable):
            with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
                open_shared(descriptor, PIXELS.nbytes)
    finally:
        for descriptor in (fd, reading, writing, unsealable):
            os.close(descriptor)


# -- a worker that lies ----------------------------------------------------------------------------------------------


class Liar:
    """The worker's end of a connection, in our hands."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours

    def say(self, head: bytes, *fds: int, body: bytes = b"") -> None:
        socket.send_fds(self._socket, [head], fds)
        self._socket.sendall(body)


@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


@pytest.fixture
async def pair(sleeper: subprocess.Popen[bytes]) -> AsyncIterator[tuple[WorkerProcess, Liar]]:
    theirs, ours = socket.socketpair()
    theirs.setblocking(False)
    with ThreadPoolExecutor(1) as spawner:
        worker = WorkerProcess(sleeper, theirs, spawner, lambda _: None)
        yield worker, Liar(ours)
        worker.kill()
    ours.close()


def reply(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    return wire.pack_reply(PreparedImage(pixels=pixels, content_sha256=bytes(32), original_size=(1, 1), decode_ms=1.0))


SMALL = files.noise(8, 8)
LARGE = reply(PIXELS)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_reply_in_pieces_is_put_together(pair: tuple[WorkerProcess, Liar]) -> None:
    worker, liar = pair
    exchange = asyncio.create_task(worker.exchange(b"", b""))
    for byte in reply(SMALL):
        liar.say(bytes([byte]))
        await asyncio.sleep(0)
    liar.say(SMALL.tobytes())
    header, body = await exchange
    np.testing.assert_array_equal(header.to_image(body).pixels, SMALL)


async def test_large_reply_is_the_memory_itself(pair: tuple[WorkerProcess, Liar], memory: int) -> None:
    worker, liar = pair
    liar.say(LARGE, memory)
    header, body = await worker.exchange(b"", b"")
    image = header.to_image(body)
    np.testing.assert_array_equal(image.pixels, PIXELS)
    with pytest.raises(ValueError, match="WRITEABLE"):
        image.pixels.flags.writeable = True


LIES = ["no memory", "memory with a small reply", "memory too small", "memory still written", "a pipe", "two memories"]


@pytest.mark.parametrize("lie", LIES)
async def test_lie_about_memory_is_not_believed_and_costs_no_descriptor(
    pair: tuple[WorkerProcess, Liar], memory: int, lie: str
) -> None:
    worker, liar = pair
    other, (reading, writing) = share(SMALL), os.pipe()
    written = mmap.mmap(memory, PIXELS.nbytes) if lie == "memory still written" else None
    before = open_descriptors()
    said: dict[str, list[tuple[bytes, tuple[int, ...]]]] = {
        "no memory": [(LARGE, ())],
        "memory with a small reply": [(reply(SMALL), (memory,))],
        "memory too small": [(LARGE, (other,))],
        "memory still written": [(LARGE, (memory,))],
        "a pipe": [(LARGE, (reading,))],
        "two memories": [(LARGE[:10], (memory,)), (LARGE[10:], (memory,))],
    }
    for head, fds in said[lie]:
        liar.say(head, *fds)
    try:
        with pytest.raises(wire.ProtocolError):
            await worker.exchange(b"", b"")
        assert open_descriptors() == before
    finally:
        if written is not None:
            written.close()
        for descriptor in (other, reading, writing):
            os.close(descriptor)


async def test_real_workers_pass_large_results_and_leak_nothing() -> None:
    pool = MediaPool(MediaLimits(), 1, served_processors("texthawk2-nano"))
    await pool.start()
    try:
        data = files.encode(files.noise(300, 500))
        images = [await pool.prepare(data, "texthawk2-nano") for _ in range(2)]
        before = open_descriptors()
        images += [await pool.prepare(data, "texthawk2-nano") for _ in range(10)]
        assert open_descriptors() == before
        assert all(image.pixels.nbytes > wire.SHARED_FROM_BYTES for image in images)
        assert all(np.array_equal(image.pixels, images[0].pixels) for image in images)
        assert replace(images[0], decode_ms=0.0).grid == (1, 2)
    finally:
        await pool.stop()
