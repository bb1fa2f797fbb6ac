"""``vireo chat`` at a real terminal: a process on a pseudo-terminal, keys pressed, what the screen shows."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.errors import EngineFailed
from serving.tasks.chat.domain import TextPart
from tests.support.fake_service import WORDS, FakeService
from tests.support.media_files import encode, gradient
from tests.support.served_door import ServedDoor, served
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[4]
TIMEOUT_S = 60.0
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\r")
# Without a controlling terminal Ctrl-C is but a character. Not a preexec_fn: unsafe in a process with threads.
_LAUNCHER = (
    "import fcntl, os, signal, sys, termios\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # ignored in what a script runs in the background
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'serving.cli', *sys.argv[1:]])\n"
)
CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"


class Terminal:
    """The far end of a pseudo-terminal on which a process runs."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process = process
        self._end = end
        self._screen = b""
        self._seen = 0

    def press(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def until(self, word: str) -> None:
        """Wait until ``word`` is shown, after everything waited for before."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while (at := self.screen.find(word, self._seen)) < 0:
            ready, _, _ = select.select([self._end], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"{word!r} was not shown:\n{self.screen}"
            assert self._read(), f"the process ended before {word!r}:\n{self.screen}"
        self._seen = at + len(word)

    def ended(self) -> int:
        """Wait for the end of the process; return its exit code."""
        with suppress(OSError):
            while self._read():
                pass
        return self.process.wait(TIMEOUT_S)

    @property
    def screen(self) -> str:
        return _ESCAPES.sub(b"", self._screen).decode("utf-8", "ignore")

    def _read(self) -> bytes:
        data = os.read(self._end, 4096)
        self._screen += data
        return data


@contextmanager
def terminal(door: ServedDoor, *words: str) -> Iterator[Terminal]:
    """Run ``vireo chat`` at a terminal of its own."""
    near, far = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, "chat", *words, "--url", door.url],
            cwd=ROOT,
            env=_environment(),
            stdin=far,
            stdout=far,
            stderr=far,
            start_new_session=True,
        )
    finally:
        os.close(far)
    try:
        yield Terminal(process, near)
    finally:
        process.kill()
        process.wait()
        os.close(near)


def _environment() -> Mapping[str, str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "proto")))
    return {**os.environ, "PYTHONPATH": path, "TERM": "xterm", "COLUMNS": "200", "PYTHONUTF8": "1"}


def told(door: ServedDoor) -> list[list[str]]:
    """Texts of the messages of each request."""
    return [
        ["".join(part.text for part in message.parts if isinstance(part, TextPart)) for message in chat.messages]
        for chat in door.service.chats
    ]


def wait_idle(door: ServedDoor) -> None:
    wait_until(lambda: not door.service.chats_open, "no chat is open")


def test_session_streams_stops_at_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(encode(gradient(40, 50)))
    gate = asyncio.Event()
    with served(FakeService(chat_gates={2: gate})) as door, terminal(door) as screen:
        screen.until("/help shows the commands")
        screen.until("> ")
        screen.press(b"/image " + str(picture).encode() + b"\n")
        screen.until("with your next message")
        screen.until("> ")
        screen.press(b"One\n")
        screen.until("Two squares")  # while the server still holds the rest back
        screen.press(CTRL_C)
        screen.until("stopped")
        wait_idle(door)
        assert door.service.chats_cut == 1
        door.open_gate(2)
        screen.until("> ")
        screen.press(UP + b" more\n")
        screen.until(WORDS[-1])
        screen.until("0.25 J (estimate)")
        screen.until("> ")
        screen.press(CTRL_C + b"\n")  # Python sees a signal that just precedes its wait for keys at the next line only
        screen.until("Ctrl-D or /quit ends")
        screen.until("> ")
        screen.press(CTRL_D)
        assert screen.ended() == 0
        assert told(door) == [["One"], ["One", "Two squares ", "One more"]]


def test_ctrl_c_ends_a_single_question_with_what_came() -> None:
    with served(FakeService(chat_gates={2: asyncio.Event()})) as door, terminal(door, "One") as screen:
        screen.until("Two squares")
        screen.press(CTRL_C)
        screen.until("vireo: stopped")
        assert screen.ended() == 128 + signal.SIGINT
        wait_idle(door)
        assert door.service.chats_cut == 1


def test_session_survives_a_stream_that_breaks() -> None:
    with served(FakeService(chat_errors={1: EngineFailed("lost it")})) as door, terminal(door) as screen:
        screen.until("> ")
        screen.press(b"One\n")
        screen.until("vireo: engine_failed: lost it")
        screen.until("> ")
        screen.press(b"/quit\n")
        assert screen.ended() == 0
