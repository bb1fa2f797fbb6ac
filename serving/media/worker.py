"""The decode worker: a process that reads requests from a socket, one at a time, until the socket ends.

Started by ``serving.media.worker_process`` with ``python -m serving.media.worker FD PARENT_PID``. It limits its own
memory, dies with its parent (by the kernel's word, and because its socket ends), and handles hostile files: only pixels
and our own error texts leave it.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import signal
import socket
import struct
import sys
import warnings
from dataclasses import dataclass
from typing import cast

import numpy as np

from serving.confined_child import die_with_parent, limit_memory
from serving.domain import Pixels
from serving.errors import ServingError
from serving.media import wire
from serving.media.limits import MediaLimits
from serving.media.prepare import PreparedImage, Processor, ProcessorFactory, prepare_encoded, prepare_pixels
from serving.media.shared_pixels import share

READY = b"R"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST_KEPT_BLOCK = 32 << 20  # the highest that glibc accepts
_KEPT_BYTES = 64 << 20
_LENGTH = struct.Struct("<I")
_BUFFER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker is told at its start. Pickled by the parent, which the worker trusts; never the other way round."""

    limits: MediaLimits
    factory: ProcessorFactory
    memory_bytes: int

    def pack(self) -> bytes:
        """Length-prefixed pickle."""
        raw = pickle.dumps(self)
        return _LENGTH.pack(len(raw)) + raw


class _Worker:
    """Holds the processors that this process has built."""

    def __init__(self, connection: socket.socket, reader: io.BufferedReader, config: WorkerConfig) -> None:
        self._connection = connection
        self._reader = reader
        self._config = config
        self._processors: dict[tuple[str, int | None], Processor] = {}

    def run(self) -> None:
        self._connection.sendall(READY)
        while True:
            header = wire.RequestHeader.unpack(_receive(self._reader, wire.REQUEST_BYTES))
            model_id = _receive(self._reader, header.model_bytes).decode()
            payload = _receive(self._reader, header.payload_bytes)
            self._answer(header, model_id, payload)

    def _answer(self, header: wire.RequestHeader, model_id: str, payload: bytes) -> None:
        try:
            image = self._prepare(header, model_id, payload)
            shared = share(image.pixels) if image.pixels.nbytes >= wire.SHARED_FROM_BYTES else None
        except ServingError as error:
            self._connection.sendall(wire.pack_error(error))
        except Exception as error:  # a bug, or a processor that cannot be built: say it in our log, not to the client
            print(f"media worker: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self._connection.sendall(wire.pack_internal_error())
        else:
            if shared is None:
                _send_reply(self._connection, wire.pack_reply(image), image.pixels)
            else:
                _send_shared(self._connection, wire.pack_reply(image), shared)

    def _prepare(self, header: wire.RequestHeader, model_id: str, payload: bytes) -> PreparedImage:
        limits, process = self._config.limits, self._processor(model_id, header.max_tiles)
        if header.kind is wire.Kind.PIXELS:
            rgb: Pixels = np.frombuffer(payload, dtype=np.uint8).reshape(header.height, header.width, 3)
            return prepare_pixels(rgb, limits, process)
        return prepare_encoded(payload, limits, process)

    def _processor(self, model_id: str, max_tiles: int | None) -> Processor:
        wanted = model_id, max_tiles
        if wanted not in self._processors:
            self._processors[wanted] = self._config.factory(*wanted)
        return self._processors[wanted]


def _receive(reader: io.BufferedReader, num_bytes: int) -> bytes:
    """Read exactly ``num_bytes``; raises EOFError when the parent is gone."""
    data = reader.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    return data


def _send_reply(connection: socket.socket, head: bytes, pixels: Pixels) -> None:
    """Send both in one system call if they fit."""
    flat = pixels.data.cast("B")
    sent = connection.sendmsg([head, flat]) - len(head)
    if sent < 0:
        connection.sendall(head[sent:])
        sent = 0
    connection.sendall(flat[sent:])


def _send_shared(connection: socket.socket, head: bytes, fd: int) -> None:
    """Pass the memory along with the header's first bytes."""
    try:
        sent = socket.send_fds(connection, [head], [fd])
    finally:
        os.close(fd)
    connection.sendall(head[sent:])


def _keep_freed_memory() -> None:
    """Let malloc reuse the blocks of the last image instead of giving them back to the kernel after each.

    Otherwise every image of some megapixels costs thousands of page faults, a third of the worker's time
    (docs/experiments.md). At most ``_KEPT_BYTES`` stay. C libraries without ``mallopt`` keep their own policy.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def main(connection_fd: int, parent_pid: int) -> None:
    """Serve until the parent closes the connection."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the socket
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=connection_fd)
    try:
        reader = cast(io.BufferedReader, connection.makefile("rb", buffering=_BUFFER_BYTES))
        (length,) = _LENGTH.unpack(_receive(reader, _LENGTH.size))
        config: WorkerConfig = pickle.loads(_receive(reader, length))
        limit_memory(config.memory_bytes)
        _keep_freed_memory()
        _Worker(connection, reader, config).run()
    except (EOFError, ConnectionError):
        return


if __name__ == "__main__":
    # Import by its real name, so that what the parent pickled and what runs here are the same classes.
    from serving.media.worker import main as run_worker

    run_worker(int(sys.argv[1]), int(sys.argv[2]))
