"""Keeps the door of a system on this machine open: while Ray Serve has no HAProxy, a stand-in of ours carries on.

Ray learns of a dead HAProxy from three failed health checks, and then replaces the actor that had started it. Until
that one's HAProxy is there, the stand-in serves by the last configuration that led to a gateway, and follows what Ray
writes meanwhile. It has no part in Ray's administration: its only socket is the one over which HAProxy hands open
listening sockets to its successor, so that no connection is refused when Ray's own takes over
(``serving.system.haproxy_launcher``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from serving.system.haproxy_launcher import FIRST, LAST_NAME, copy, edit, leads_somewhere

_log = structlog.get_logger(__name__)
_FOLLOW_S = 0.2
"""How often the stand-in looks for a new configuration."""
_PROBE_S = 0.5
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_HEALTHY_AFTER_S = 5.0
# The death signal is set in the child, and not by a preexec_fn, which is unsafe in a process with threads.
_DIE_WITH_KEEPER = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 15)\n"
    "os.getppid() == int(sys.argv[1]) or os._exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class DoorKeeper:
    """A thread that hears of every HAProxy that Ray starts, over a socket at ``address``, and waits for its end.

    ``folder`` holds a folder for each node's HAProxy. ``door`` is where HTTP is served. The thread forks the stand-in,
    and the kernel ends that together with the thread.
    """

    def __init__(self, folder: Path, binary: str, edits: Path, address: Path, door: tuple[str, int]) -> None:
        self._folder = folder
        self._binary = binary
        self._edits = edits
        self._address = address
        self._door = door
        self._selector: selectors.BaseSelector
        self._listener: socket.socket
        self._wake = -1
        self._is_closing = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="door-keeper", daemon=True)
        self._own = 0
        """Pid of the HAProxy that Ray has started last, 0 once it has ended. Earlier ones let their last clients go."""
        self._stand_ins: list[subprocess.Popen[bytes]] = []
        """The last one serves, or has been relieved by Ray's own; those before it let their last clients go."""
        self._followed: tuple[Path, int] | None = None
        self._backoff_s = _FIRST_BACKOFF_S
        self._not_before_s = 0.0
        self._started_s = 0.0

    def start(self) -> None:
        """Begin to listen; returns at once. Call before Ray starts."""
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._address.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._address))
        self._address.chmod(0o600)
        self._listener.listen()
        self._thread.start()

    def close(self) -> None:
        """Let the door shut from now on. A stand-in that serves goes on, until it is told to end as HAProxy is."""
        self._is_closing.set()
        self._nudge()

    def stop(self) -> None:
        """End the stand-in and the thread. Idempotent."""
        self._is_closing.set()
        self._is_stopping.set()
        self._nudge()
        if self._thread.is_alive():
            self._thread.join()

    def _nudge(self) -> None:
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, self._answer)
        self._selector.register(self._wake, selectors.EVENT_READ, lambda: os.eventfd_read(self._wake))
        while not self._is_stopping.is_set():
            try:
                for key, _ in self._selector.select(self._pause_s()):
                    key.data()
                self._look()
            except Exception:  # a file that Ray is just changing, say; the door must be kept all the same
                _log.warning("the door's keeper failed at something and goes on", exc_info=True)
                self._is_stopping.wait(_FIRST_BACKOFF_S)
        for process in self._stand_ins:
            process.kill()
            process.wait()
        self._listener.close()
        self._selector.close()

    def _pause_s(self) -> float | None:
        return _FOLLOW_S if self._is_alone() else None

    def _is_alone(self) -> bool:
        """Whether Ray has had a HAProxy, and has none now."""
        return not self._own and not self._is_closing.is_set() and self._last() is not None

    def _last(self) -> Path | None:
        """The last configuration that led to a gateway."""
        return max(self._folder.glob(f"*/{LAST_NAME}"), key=lambda path: path.stat().st_mtime_ns, default=None)

    def _answer(self) -> None:
        """A launcher tells of itself: HAProxy will have its pid. One without predecessor hears what to take over."""
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_PROBE_S)
            pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            self._own = pid
            self._watch(pid, lambda: self._lost(pid))
            if connection.recv(16) == FIRST:
                connection.sendall(self._offer().encode())

    def _lost(self, pid: int) -> None:
        if self._own == pid:
            self._own = 0

    def _watch(self, pid: int, ended: Callable[[], object]) -> None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            ended()
            return

        def forget() -> None:
            self._selector.unregister(handle)
            os.close(handle)
            ended()

        self._selector.register(handle, selectors.EVENT_READ, forget)

    def _offer(self) -> str:
        """Arguments of HAProxy that take the sockets over from the stand-in, or nothing."""
        if not self._stand_ins or self._stand_ins[-1].poll() is not None or self._followed is None:
            return ""
        path = _socket(self._followed[0])
        deadline_s = time.monotonic() + _PROBE_S
        while not _accepts(path):  # it may have been started just now
            if time.monotonic() > deadline_s:
                return ""
            time.sleep(0.01)
        return f"-x {path} -sf {self._stand_ins[-1].pid}"

    def _look(self) -> None:
        """Make sure that somebody serves."""
        self._stand_ins = [process for process in self._stand_ins if process.poll() is None]
        if not self._is_alone():
            return
        if not _is_open(self._door):
            self._stand_in()
        elif self._stand_ins:
            self._follow()

    def _stand_in(self) -> None:
        now_s = time.monotonic()
        last = self._last()
        if now_s < self._not_before_s or last is None:
            return
        if now_s - self._started_s > _HEALTHY_AFTER_S:
            self._backoff_s = _FIRST_BACKOFF_S
        self._not_before_s = now_s + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)
        _log.warning("HAProxy is gone: a stand-in keeps the door open until Ray has another")
        self._launch(last.parent, [])

    def _follow(self) -> None:
        """Have the stand-in serve by what Ray has written since."""
        assert self._followed is not None
        folder, seen = self._followed
        written = folder / "haproxy.cfg"
        if written.stat().st_mtime_ns == seen:
            return
        self._followed = folder, written.stat().st_mtime_ns
        fresh = folder / "fresh.cfg"
        with open(f"{written}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as Ray does while it writes
            copy(str(written), str(fresh))
        edit(str(fresh), str(self._edits))
        if leads_somewhere(fresh.read_text()):
            copy(str(fresh), str(folder / LAST_NAME))
            self._launch(folder, self._offer().split())

    def _launch(self, folder: Path, takes_over: list[str]) -> None:
        self._followed = folder, (folder / "haproxy.cfg").stat().st_mtime_ns
        path = folder / "stand-in.cfg"
        path.write_text(stand_in_config((folder / LAST_NAME).read_text(), _socket(folder)))
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_KEEPER, str(os.getpid())]
        command += [self._binary, "-db", "-dR", "-f", str(path), *takes_over]
        with (folder / "stand-in.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._started_s = time.monotonic()
        self._stand_ins.append(process)
        self._watch(process.pid, process.poll)


def stand_in_config(text: str, hand_over: Path) -> str:
    """A configuration of Ray's without what only Ray's own may have: the administration's socket, the ports of
    statistics and metrics, and what an earlier HAProxy knew of the servers. ``hand_over`` is the stand-in's socket."""
    sections = re.split(r"^(?=(?:global|defaults|frontend|backend|listen)\b)", text, flags=re.MULTILINE)
    kept = [section for section in sections if not section.startswith(("frontend prometheus", "listen stats"))]
    text = "".join(kept)
    text = re.sub(r"^.*server-state.*\n", "", text, flags=re.MULTILINE)
    socket_line = f"    stats socket {hand_over} mode 600 level user expose-fd listeners"
    return re.sub(r"^\s*stats socket .*$", lambda _: socket_line, text, flags=re.MULTILINE)


def _socket(folder: Path) -> Path:
    """One letter: HAProxy's limit for paths of sockets is near."""
    return folder / "s"


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _is_open(door: tuple[str, int]) -> bool:
    """Whether anybody listens; one that is too busy to accept does."""
    try:
        socket.create_connection(door, _PROBE_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True
