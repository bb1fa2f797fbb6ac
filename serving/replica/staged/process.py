"""A ``StagedEngine`` whose model runs in a process of its own.

On a thread of a process whose event loop is busy for a third of the time, the same batch takes 1.7 times as long,
because every operator of torch competes for the interpreter lock; beside another process it takes no longer
(docs/experiments.md).

The two sides take turns on one socket; arrays go through memory that both have mapped. The process dies with the thread
that started it, and ends when the socket does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import mmap
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from array import array
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from models.contract import Point
from models.inputs import Array, Inputs, shape_of
from serving.confined import start_child
from serving.confined_child import die_with_parent, receive
from serving.errors import QueueFull, ServingError
from serving.replica.staged.base import NOTHING_SET, Done, Measured, Outcome, Outputs
from serving.telemetry import logs

if TYPE_CHECKING:
    from serving.replica.staged.engine import Loaded, RowEngine

_HEAD = struct.Struct("<QQ")
"""Bytes of a message, and arrays in the shared memory, whose sizes come next."""
_ALIGNMENT = 64
_GROWTH_BYTES = 1 << 20
_EXIT_TIMEOUT_S = 5.0


class EngineProcess:
    """Starts the process and waits until ``maker`` (``module:name``), called there with ``argument``, gave its
    ``serving.replica.staged.engine.Loaded``.

    ``when_lost`` is called when the process is found to have ended, or to talk nonsense.

    Raises: what ``maker`` raised; RuntimeError: the process ended.
    """

    def __init__(self, maker: str, argument: Any, when_lost: Callable[[], None] = lambda: None) -> None:
        ours, theirs = socket.socketpair()
        memory_fd = os.memfd_create("vireo-rows", os.MFD_CLOEXEC)
        self._process = start_child("serving.replica.staged.process", theirs, inherits=True)
        self._link = _Link(ours, memory_fd)
        self._end = weakref.finalize(self, _end, self._process, ours, memory_fd)
        self._when_lost = when_lost
        self._samples: dict[int, _Sample] = {}
        #: Samples that the process still has and that nobody wants any more.
        self._released: list[int] = []
        self._will_tell = False
        #: What the process works on, and who is told.
        self._running: list[_Sample] = []
        self._done: Done = _nobody
        #: That waits for its answers.
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Seconds that the process itself spent on the last batch.
        self.last_run_s = 0.0
        try:
            socket.send_fds(ours, [b"m"], [memory_fd])
            self._link.send((maker, argument))
            made = self._link.receive()
        except (OSError, EOFError):
            self.close()
            raise RuntimeError("the engine's process ended while it loaded the model; its log says why") from None
        if isinstance(made, Exception):
            self.close()
            raise made
        self.num_stages: int
        self._charge_bytes: int
        self._max_bytes: int
        self.measured: Measured | None
        self.num_stages, self._charge_bytes, self._max_bytes, self.measured = made

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def held_bytes(self) -> int:
        """Upper bound of what the admitted samples hold."""
        return len(self._samples) * self._charge_bytes

    def admit(self, sample_id: int, inputs: Inputs, settings: Point = NOTHING_SET) -> Hashable:
        """Keep it until it first runs; rows of equal shapes may run together."""
        if (len(self._samples) + 1) * self._charge_bytes > self._max_bytes:
            raise QueueFull(
                f"{len(self._samples)} samples hold {self.held_bytes} bytes; limit is {self._max_bytes}; retry later",
                retry_after_s=1.0,
            )
        self._samples[sample_id] = _Sample(inputs, settings)
        return shape_of(inputs)

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        """Send what is new and what has gone, and wait for the outcomes."""
        self._send(stage, num_stages, sample_ids)
        return self._receive()

    def start(self, stage: int, num_stages: int, sample_ids: Sequence[int], done: Done) -> None:
        """As ``run``, from the event loop: no thread stands between it and the process."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            loop.add_reader(self._link.connection, self._readable)
        try:
            self._send(stage, num_stages, sample_ids)
        except Exception as error:
            self._running = []
            loop.call_soon(done, error)
        else:
            self._done = done

    def _readable(self) -> None:
        """The outcomes are there, or the process has ended."""
        done, self._done = self._done, _nobody
        try:
            outcomes = self._receive()
        except Exception as error:
            self._ignore()
            done(error)
        else:
            done(outcomes)

    def _ignore(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            loop.remove_reader(self._link.connection)

    def _send(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> None:
        self._running = [self._samples[sample_id] for sample_id in sample_ids]
        rows, settings = None, []
        if stage == 0:
            rows = _stacked([one.inputs for one in self._running])
            settings = [dict(one.settings) for one in self._running]
            for one in self._running:
                one.inputs = None
        released, self._released = self._released, []
        try:
            self._link.send((released, stage, num_stages, tuple(sample_ids), rows, settings))
        except OSError:  # it has ended since the last batch
            self._when_lost()
            raise

    def _receive(self) -> list[Outcome]:
        samples, self._running = self._running, []
        try:
            received: tuple[list[Outcome], list[dict[str, Array]], float] = self._link.receive()
            outcomes, passed, self.last_run_s = received
            good = [one for one, out in zip(samples, outcomes, strict=True) if not isinstance(out, ServingError)]
            for outputs in passed:
                for at, one in enumerate(good):  # copies: the memory is used again
                    one.outputs.append({name: rows[at, ...].copy() for name, rows in outputs.items()})
        except Exception:  # it has ended, or says what nobody understands: nothing more comes of it
            self._when_lost()
            raise
        return outcomes

    def result(self, sample_id: int, exit_index: int) -> Outputs:
        """Outputs of an exit that the sample has passed."""
        try:
            return self._samples[sample_id].outputs[exit_index]
        except IndexError:
            raise KeyError(f"sample {sample_id} has not passed exit {exit_index}") from None

    def release(self, sample_id: int) -> None:
        """Forget the sample here, and there at the next turn: at the latest when this turn of the loop is over."""
        sample = self._samples.pop(sample_id, None)
        if sample is None or sample.inputs is not None:
            return
        self._released.append(sample_id)
        if not self._will_tell:
            self._will_tell = True
            try:
                asyncio.get_running_loop().call_soon(self._tell_released)
            except RuntimeError:  # no loop: a test
                self._tell_released()

    def _tell_released(self) -> None:
        """If it is working, the next message says it, or what is released when that is over."""
        self._will_tell = False
        if self._released and not self._running:
            released, self._released = self._released, []
            with contextlib.suppress(OSError):  # it has ended, and everything there is released
                self._link.send((released, 0, 0, (), None, []))

    def close(self) -> None:
        """End the process. Idempotent."""
        self._ignore()
        self._end()


def _nobody(outcomes: list[Outcome] | Exception) -> None:
    """Nothing runs."""


class _Sample:
    """One sample as its caller's side knows it. ``inputs`` until it has been sent."""

    __slots__ = ("inputs", "outputs", "settings")

    def __init__(self, inputs: Inputs, settings: Point) -> None:
        self.inputs: Inputs | None = inputs
        self.settings = settings
        self.outputs: list[Outputs] = []


class _Link:
    """One end of the connection. Arrays in a received value are valid until the next ``send`` of either side."""

    def __init__(self, connection: socket.socket, memory_fd: int) -> None:
        self.connection = connection
        self._fd = memory_fd
        self._memory = memoryview(b"")

    def send(self, value: Any) -> None:
        """Raises: OSError: the other side is gone."""
        buffers: list[pickle.PickleBuffer] = []
        message = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        sizes = array("Q", [part.nbytes for part in parts])
        for part, place in zip(parts, self._places(sizes), strict=True):
            place[:] = part
        self.connection.sendall(_HEAD.pack(len(message), len(sizes)) + sizes.tobytes() + message)

    def receive(self) -> Any:
        """Raises: EOFError, OSError: the other side is gone."""
        num_bytes, num_arrays = _HEAD.unpack(receive(self.connection, _HEAD.size))
        sizes = array("Q")
        head = sizes.itemsize * num_arrays
        message = memoryview(receive(self.connection, head + num_bytes))
        sizes.frombytes(message[:head])
        return pickle.loads(message[head:], buffers=self._places(sizes))

    def _places(self, sizes: Sequence[int]) -> list[memoryview]:
        """Of arrays of so many bytes, one after the other. What is mapped grows and never shrinks."""
        starts = list(accumulate([-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes], initial=0))
        if starts[-1] > len(self._memory):
            size = -(-starts[-1] // _GROWTH_BYTES) * _GROWTH_BYTES
            if os.fstat(self._fd).st_size < size:
                os.ftruncate(self._fd, size)
            self._memory = memoryview(mmap.mmap(self._fd, size))
        return [self._memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _end(process: subprocess.Popen[bytes], connection: socket.socket, memory_fd: int) -> None:
    connection.close()
    os.close(memory_fd)
    try:
        process.wait(_EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stacked(rows: Sequence[Any]) -> Any:
    """Rows of equal shapes as one array, or one by name."""
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows, axis=None).reshape(len(rows), *rows[0].shape)  # ``np.stack``, in half the time
    return {name: _stacked([row[name] for row in rows]) for name in rows[0]}


def _row(stacked: Any, at: int) -> Inputs:
    """One of them, without a copy."""
    if isinstance(stacked, np.ndarray):
        return stacked[at, ...]
    return {name: array[at, ...] for name, array in stacked.items()}


# -- in the process ----------------------------------------------------------------------------------------------------


def main(fd: int, parent_pid: int) -> None:
    """Make the engine, then run what the parent sends until it closes the connection."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the connection
    logs.configure()
    connection = socket.socket(fileno=fd)
    try:
        _, (memory_fd,), _, _ = socket.recv_fds(connection, 1, 1)
        link = _Link(connection, memory_fd)
        maker, argument = link.receive()
        module, _, name = maker.partition(":")
        try:
            loaded: Loaded = getattr(importlib.import_module(module), name)(argument)
        except Exception as error:
            link.send(error)
            return
        engine = loaded.engine
        gc.collect()
        gc.freeze()
        link.send((engine.num_stages, *engine.bounds, loaded.measured))
        while True:
            _serve(engine, link)
    except (EOFError, OSError):
        return


def _serve(engine: RowEngine, link: _Link) -> None:
    released, stage, num_stages, sample_ids, rows, settings = link.receive()
    for sample_id in released:
        engine.release(sample_id)
    if not sample_ids:
        return
    started_s = time.perf_counter()
    for at, (sample_id, point) in enumerate(zip(sample_ids, settings, strict=True) if stage == 0 else ()):
        engine.admit(sample_id, _row(rows, at), point)
    outcomes = engine.run(stage, num_stages, sample_ids)
    good = [one for one, outcome in zip(sample_ids, outcomes, strict=True) if not isinstance(outcome, ServingError)]
    exits = range(stage, stage + num_stages) if good else ()
    passed = [_stacked([engine.result(sample_id, exit_index) for sample_id in good]) for exit_index in exits]
    link.send((outcomes, passed, time.perf_counter() - started_s))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
