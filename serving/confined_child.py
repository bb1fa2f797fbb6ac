"""The process behind ``serving.confined``: makes a function, then calls it for each request until its socket ends.

Started with ``python -m serving.confined_child``. It dies with the thread that started it, and of its own alarm clock
when a call takes too long, whatever has become of the parent.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Final

HEADER: Final = struct.Struct("<BQ")
"""Status (0 in requests) and number of bytes that follow."""

_PR_SET_PDEATHSIG = 1


class Status(IntEnum):
    """How a call ended. Only ``DONE`` has a payload."""

    DONE = 0
    OUT_OF_MEMORY = 1
    FAILED = 2


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def limit_memory(memory_bytes: int) -> None:
    """Bound the address space of this process; a crash leaves no core file."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def address_space_bytes() -> int:
    """What this process has mapped now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def receive(connection: socket.socket, num_bytes: int) -> bytearray:
    """Read exactly so many bytes. Raises: EOFError: the other side is gone."""
    data = bytearray(num_bytes)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def main(fd: int, parent_pid: int, maker: str, argument: str, memory_bytes: int, timeout_s: float) -> None:
    """Serve until the parent closes the connection."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the socket
    module, _, name = maker.partition(":")
    function: Callable[[bytearray], bytes] = getattr(importlib.import_module(module), name)(argument)
    limit_memory(address_space_bytes() + memory_bytes)
    connection = socket.socket(fileno=fd)
    try:
        connection.sendall(HEADER.pack(Status.DONE, 0))
        while True:
            _, num_bytes = HEADER.unpack(receive(connection, HEADER.size))
            status, answer = _call(function, connection, num_bytes, timeout_s)
            connection.sendall(HEADER.pack(status, len(answer)))
            connection.sendall(answer)
    except (EOFError, ConnectionError):
        return


def _call(
    function: Callable[[bytearray], bytes], connection: socket.socket, num_bytes: int, timeout_s: float
) -> tuple[Status, bytes]:
    signal.setitimer(signal.ITIMER_REAL, timeout_s)  # nobody handles it: the kernel ends the process
    try:
        request = receive(connection, num_bytes)
    except MemoryError:  # the parent is still sending: only the end of this process makes it listen
        os._exit(1)
    try:
        return Status.DONE, function(request)
    except MemoryError:
        return Status.OUT_OF_MEMORY, b""
    except Exception as error:  # a bug: say it in our log, not to the client
        print(f"confined process: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return Status.FAILED, b""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]), float(sys.argv[6]))
