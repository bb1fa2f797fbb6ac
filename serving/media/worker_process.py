"""The parent's handle of one decode worker: start it, exchange one job with it, kill it.

A worker is a fresh interpreter running ``serving.media.worker``, not a ``multiprocessing`` child: fork is unsafe in a
process with threads, and spawn and forkserver import the host's ``__main__`` (Ray's worker script) into every child.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import Executor

from serving.confined import start_child
from serving.media import wire
from serving.media.shared_pixels import open_shared
from serving.media.worker import READY, WorkerConfig

_EXIT_TIMEOUT_S = 1.0
_SMALL_BYTES = 128 << 10


class WorkerGone(Exception):
    """The process ended, or its connection did. ``exit_code`` as in ``subprocess``: negative for a signal."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class WorkerProcess:
    """One live worker. ``exchange`` is for one caller at a time, and must be over before ``kill`` is called."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        connection: socket.socket,
        spawner: Executor,
        on_exit: Callable[[WorkerProcess], None],
    ) -> None:
        self._process = process
        self._connection = connection
        self._spawner = spawner
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._exited, on_exit)

    @classmethod
    async def start(
        cls, config: WorkerConfig, spawner: Executor, on_exit: Callable[[WorkerProcess], None], timeout_s: float
    ) -> WorkerProcess:
        """Start a process and wait until it is ready.

        ``spawner`` must have one thread that outlives the worker: the kernel's death signal (PR_SET_PDEATHSIG) is tied
        to the thread that forked, not to the process.

        Raises:
            WorkerGone: it did not become ready within ``timeout_s``.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        launching = asyncio.get_running_loop().run_in_executor(spawner, start_child, "serving.media.worker", theirs)
        try:
            process = await asyncio.shield(launching)
        except asyncio.CancelledError:
            ours.close()
            process = await launching
            process.kill()
            spawner.submit(process.wait)
            raise
        except OSError as error:
            ours.close()
            raise WorkerGone("worker could not be started") from error
        worker = cls(process, ours, spawner, on_exit)
        try:
            await worker._introduce(config, timeout_s)
        except BaseException:
            worker.kill()
            raise
        return worker

    async def _introduce(self, config: WorkerConfig, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._loop.sock_sendall(self._connection, config.pack())
                if bytes(await self._receive(len(READY))) != READY:
                    raise WorkerGone("worker did not say that it is ready")
        except (TimeoutError, OSError) as error:
            raise WorkerGone(f"worker was not ready within {timeout_s:g} s") from error

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is known to run."""
        return self._pidfd >= 0

    async def exchange(self, head: bytes, payload: bytes) -> tuple[wire.ReplyHeader, wire.Payload]:
        """Send one job and wait for its answer.

        Raises:
            WorkerGone: the process died.
            wire.ProtocolError: it sent nonsense.
        """
        try:
            if len(payload) <= _SMALL_BYTES:  # one system call, and one awakening of the worker, instead of two
                await self._loop.sock_sendall(self._connection, head + payload)
            else:
                await self._loop.sock_sendall(self._connection, head)
                await self._loop.sock_sendall(self._connection, payload)
            return await self._receive_reply()
        except OSError as error:
            raise await self._gone() from error

    async def _gone(self) -> WorkerGone:
        """Find out how it ended."""
        try:
            code = await self._loop.run_in_executor(self._spawner, self._process.wait, _EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return WorkerGone("worker closed its connection and lives on")
        return WorkerGone(f"worker ended with {code}", code)

    async def _receive_reply(self) -> tuple[wire.ReplyHeader, wire.Payload]:
        fds: list[int] = []
        try:
            reply = wire.ReplyHeader.unpack(await self._receive_head(fds))
            if len(fds) != (reply.status is wire.Status.OK_SHARED):
                raise wire.ProtocolError(f"{len(fds)} descriptors with status {reply.status}")
            if fds:
                return reply, _open_shared(fds[0], reply.payload_bytes)
            return reply, await self._receive(reply.payload_bytes)
        finally:
            for fd in fds:
                os.close(fd)

    async def _receive_head(self, fds: list[int]) -> bytes:
        """Receive the header of a reply; a descriptor that comes with it is added to ``fds``."""
        head = b""
        while len(head) < wire.REPLY_BYTES:
            try:
                part, passed, _, _ = socket.recv_fds(
                    self._connection, wire.REPLY_BYTES - len(head), 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._readable()
                continue
            fds += passed
            if not part:
                raise ConnectionResetError("worker closed its connection")
            head += part
        return head

    async def _readable(self) -> None:
        """Wait until there is something to read; asyncio itself cannot receive descriptors."""
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._connection, _tell, ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._connection)

    async def _receive(self, num_bytes: int) -> bytearray:
        buffer = bytearray(num_bytes)
        view, filled = memoryview(buffer), 0
        while filled < num_bytes:
            count = await self._loop.sock_recv_into(self._connection, view[filled:])
            if count == 0:
                raise ConnectionResetError("worker closed its connection")
            filled += count
        return buffer

    def kill(self) -> None:
        """Kill the process at once and let it be reaped. Call it when no ``exchange`` is running. Idempotent."""
        self._stop_watching()
        self._process.kill()
        self._connection.close()
        self._spawner.submit(self._process.wait)

    def signal_kill(self) -> None:
        """Kill the process under a running ``exchange``, which then raises WorkerGone."""
        self._process.kill()

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _exited(self, on_exit: Callable[[WorkerProcess], None]) -> None:
        self._stop_watching()
        on_exit(self)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _open_shared(fd: int, num_bytes: int) -> memoryview:
    try:
        return open_shared(fd, num_bytes)
    except (OSError, ValueError) as error:
        raise wire.ProtocolError(f"shared memory: {error}") from None
