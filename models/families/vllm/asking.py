"""vLLM asked about a folder, in a process of its own: gateways and the command line load neither it nor torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from models.contract import Grid, Variant

_SIZES_KEPT = 65_536


class VllmProcess:
    """``python -m models.families.vllm.vllm_describe FOLDER``: says what it knows, then answers one question a line.

    It takes seconds to start, and half a gigabyte. It ends with this object, and with this process.
    """

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "models.families.vllm.vllm_describe", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.stop = weakref.finalize(self, _end, self._process)
        self._first: dict[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """See ``vllm_describe.describe``. Raises: ValueError: vLLM cannot serve the folder; the message says why."""
        if self._first is None:
            self._first = self._read()
        if "error" in self._first:
            raise ValueError(self._first["error"])
        return self._first

    def count(self, height: int, width: int) -> int:
        """Tokens of a picture of that size. Raises: ValueError: the model's processor does not take it."""
        self.facts()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer to read either
            self._process.stdin.write(f"{height} {width}\n")
            self._process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            raise ValueError(answer["error"])
        return int(answer["tokens"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the process that asks vLLM ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


class PictureCounter:
    """How many tokens pictures become, by their size: by memory, or by what vLLM's own processor makes of a blank one.

    The process that is asked starts at once and is started anew if it ends. Threads may share one counter.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = VllmProcess(folder)
        self._lock = threading.Lock()
        self._count = lru_cache(_SIZES_KEPT)(self._ask)

    def __call__(self, height: int, width: int) -> Grid:
        """One row of so many tokens. Raises: ValueError: the model takes no such picture."""
        return 1, self._count(height, width)

    def _ask(self, height: int, width: int) -> int:
        with self._lock:
            try:
                return self._process.count(height, width)
            except RuntimeError:
                self._process = VllmProcess(self._folder)
                return self._process.count(height, width)


def count_pictures(variant: Variant) -> Callable[[int, int], Grid] | None:
    """What tells the grid of a picture by its height and width; None where all are alike."""
    assert variant.weights is not None, "resolved from a folder"
    return None if variant.config["image_tokens"] else PictureCounter(variant.weights)
