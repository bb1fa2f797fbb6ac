"""Calls of a function in processes of their own, each with a memory and a time limit.

For work whose cost a caller decides and that holds the interpreter lock: parsing, compiling. A thread would not help,
and an executor of the standard library breaks as a whole when one of its processes is killed. What is sent and what
comes back are bytes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TypeAlias

from serving.confined_child import HEADER, Status, receive
from serving.errors import BackendError, QueueFull

Buffer: TypeAlias = bytes | bytearray | memoryview

_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "HOME")
"""Keys and secrets stay out of a process that meets what callers send."""
_START_TIMEOUT_S = 30.0
_GRACE_S = 0.5
"""How much later than the process's own alarm clock we stop waiting for it."""


def start_child(
    module: str,
    connection: socket.socket,
    *arguments: str,
    variables: Mapping[str, str] | None = None,
    inherits: bool = False,
) -> subprocess.Popen[bytes]:
    """Run ``python -m module FD PARENT_PID arguments`` with the child's end of a connection, which is closed here.

    ``inherits``: it is a part of this process, and gets all of its environment.
    """
    environment = {name: os.environ[name] for name in (os.environ if inherits else _INHERITED) if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    if not inherits:
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    fd = connection.fileno()
    with connection:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(fd), str(os.getpid()), *arguments],
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            env={**environment, **(variables or {})},
        )


class Limit(Enum):
    """What a call ran into."""

    MEMORY = "memory"
    TIME = "time"


class LimitReached(Exception):
    """The call needed more memory or time than it may have. Its process is replaced; nothing else suffers."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit.value)
        self.limit = limit


class Confined:
    """At most ``num_processes`` calls at a time, the others wait in order; one too many of them is refused.

    ``maker`` is ``module:name`` of what makes the function in the process, given ``argument``. A process is started by
    the first call that needs it. ``memory_bytes`` come on top of what the process holds once the function is made.
    Called from any thread or event loop.
    """

    def __init__(
        self,
        maker: str,
        argument: str = "",
        *,
        num_processes: int = 1,
        memory_bytes: int,
        timeout_s: float,
        max_waiting: int,
    ) -> None:
        self._command = (maker, argument, str(memory_bytes), str(timeout_s))
        self._timeout_s = timeout_s
        self._max_in_hand = num_processes + max_waiting
        self._in_hand = 0
        # The kernel ties a process's death signal to the thread that started it: each has a thread that stays.
        self._threads = ThreadPoolExecutor(num_processes, "confined")
        self._own = threading.local()
        self._processes: set[_Process] = set()
        self._end = weakref.finalize(self, _end, self._processes, self._threads)

    @property
    def pids(self) -> list[int]:
        """Processes alive now."""
        return [process.pid for process in self._processes]

    async def call(self, *request: Buffer) -> bytearray:
        """Call the function with the parts of ``request``, joined.

        Raises:
            LimitReached: memory or time.
            QueueFull: too many calls wait already.
            BackendError: the function raised something, or its process cannot be started.
        """
        if self._in_hand >= self._max_in_hand:
            raise QueueFull(f"{self._in_hand} requests wait to be read, the limit; retry later", retry_after_s=1.0)
        self._in_hand += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, request)
        finally:
            self._in_hand -= 1

    def close(self) -> None:
        """End the processes, under running calls too. Idempotent."""
        self._end()

    def _call(self, request: Sequence[Buffer]) -> bytearray:
        process: _Process | None = getattr(self._own, "process", None)
        if process is None or not process.is_alive:
            process = self._own.process = self._start()
        try:
            return process.exchange(request, self._timeout_s + _GRACE_S)
        except BaseException:
            process.kill()
            self._processes.discard(process)
            raise

    def _start(self) -> _Process:
        for dead in [process for process in self._processes if not process.is_alive]:
            dead.kill()  # closes its connection
            self._processes.discard(dead)
        process = _Process(self._command)
        self._processes.add(process)
        return process


def _end(processes: set[_Process], threads: ThreadPoolExecutor) -> None:
    for process in list(processes):
        process.kill()
    threads.shutdown(wait=False, cancel_futures=True)


class _Process:
    def __init__(self, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        more = {"MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1"}
        self._process = start_child("serving.confined_child", theirs, *command, variables=more)
        self._connection = ours
        self.pid = self._process.pid
        try:
            ours.settimeout(_START_TIMEOUT_S)
            receive(ours, HEADER.size)
        except (OSError, EOFError):
            self.kill()
            raise BackendError("a process that reads requests could not be started; retry") from None

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def exchange(self, request: Sequence[Buffer], timeout_s: float) -> bytearray:
        connection = self._connection
        connection.settimeout(timeout_s)
        try:
            connection.sendall(HEADER.pack(Status.DONE, sum(map(len, request))))
            for part in request:
                connection.sendall(part)
            status, num_bytes = HEADER.unpack(receive(connection, HEADER.size))
            if status == Status.DONE:
                return receive(connection, num_bytes)
        except TimeoutError:
            raise LimitReached(Limit.TIME) from None
        except (OSError, EOFError):
            raise self._ended() from None
        if status == Status.OUT_OF_MEMORY:
            raise LimitReached(Limit.MEMORY)
        raise BackendError("reading the request failed on our side; send it again, or report it")

    def _ended(self) -> LimitReached | BackendError:
        """Which limit ended it: the alarm clock, or an allocation that a library takes for fatal."""
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return LimitReached(Limit.TIME)
        if code == -signal.SIGKILL:
            return BackendError("the process that read this request was killed from outside; send it again")
        return LimitReached(Limit.MEMORY)

    def kill(self) -> None:
        self._process.kill()
        self._connection.close()
        self._process.wait()
