"""Ranks as processes of this machine, kept warm: for tests, benchmarks and scripts. Serving uses Ray actors."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from models.parallel.launch import RankConfig, world


class RankFailed(RuntimeError):
    """A rank raised or died. The others are ended too: they may wait for it for ever."""


class RankPool:
    """``world_size`` processes in one torch.distributed world over gloo.

    ``run`` calls an importable function in every rank. Everything that crosses must be picklable; tensors are copied.
    """

    def __init__(self, world_size: int, *, num_threads: int = 1, timeout_s: float = 60.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="vireo-ranks-")
        store = f"file://{Path(self._folder.name) / 'store'}"
        self._timeout_s = timeout_s
        self._pipes: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            config = RankConfig(rank=rank, world_size=world_size, init_method=store, timeout_s=timeout_s)
            process = context.Process(target=_serve, args=(config, num_threads, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(*args)`` in every rank; what they returned, by rank.

        Raises: RankFailed: with the rank's traceback; the pool is closed.
        """
        if not self._processes:
            raise RankFailed("the pool is closed")
        try:
            for pipe in self._pipes:
                pipe.send((function, args))
            return self._answers()
        except (RankFailed, OSError) as error:
            self.close()
            raise error if isinstance(error, RankFailed) else RankFailed("a rank died before it was asked") from error

    def close(self) -> None:
        """End the processes, at once: they hold nothing, and one of them may wait for another for ever."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []
        self._folder.cleanup()

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        while len(answers) < len(self._pipes):
            missing = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready = wait(missing, timeout=self._timeout_s)
            if not ready:
                raise RankFailed(f"no rank answered within {self._timeout_s:g} s")
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                answers[rank] = self._answer(rank)
        return [answers[rank] for rank in range(len(self._pipes))]

    def _answer(self, rank: int) -> Any:
        try:
            failed, value = self._pipes[rank].recv()
        except (EOFError, OSError) as error:
            raise RankFailed(f"rank {rank} died") from error
        if failed:
            raise RankFailed(f"rank {rank} failed:\n{value}")
        return value


def _serve(config: RankConfig, num_threads: int, pipe: Connection) -> None:
    """Life of a rank: until its owner closes the pipe."""
    torch.set_num_threads(num_threads)
    with world(config), contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_outcome(*pipe.recv()))


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return False, function(*args)
    except Exception:
        return True, traceback.format_exc()
