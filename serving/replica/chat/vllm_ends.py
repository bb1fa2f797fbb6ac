"""How probable the end was at each token, from vLLM's engine process to this one.

vLLM would tell it with the tokens (``logprob_token_ids``), but its sampler then gives every request of the same step
those columns, so that one that asks for the likeliest tokens gets none (0.32). So a logits processor writes it on a
board in memory that both processes see, a row for each request that is watched, and whoever hears of a token reads it
there: it was written before the token was drawn. On a CPU only: on a GPU the processor would wait for each step.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

_KEY = "vireo_ends"
DEPTH = 1024
"""Tokens that a row holds: by so many may the engine be ahead of whoever listens."""


class EndBoard:
    """This process's side, for ``rows`` requests at a time. The other one finds it by ``arguments``. ``close`` it."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._file = os.memfd_create("vireo-ends")
        os.ftruncate(self._file, 4 * rows * DEPTH)
        self._path = f"/proc/{os.getpid()}/fd/{self._file}"
        self._values = _mapped(self._path, rows)
        self._free = deque(range(rows))

    def close(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def take(self) -> int | None:
        """A row; None while all are taken."""
        return self._free.popleft() if self._free else None

    def give_back(self, row: int) -> None:
        """It is used again as late as can be: a request that was aborted may have a step to go."""
        self._free.append(row)

    def arguments(self, row: int, end_id: int) -> dict[str, Any]:
        """``extra_args`` of the request that writes to ``row``."""
        return {_KEY: [self._path, self._rows, row, end_id]}

    def read(self, row: int, first: int, num: int) -> tuple[float, ...] | None:
        """Of so many tokens from the ``first`` on; None if the engine has been too far ahead."""
        if num > DEPTH:
            return None
        return tuple(self._values[row, np.arange(first, first + num) % DEPTH].tolist())


def _mapped(path: str, rows: int) -> npt.NDArray[np.float32]:
    """The board that is at a path now, (rows, DEPTH)."""
    file = os.open(path, os.O_RDWR)
    try:
        memory = mmap.mmap(file, 4 * rows * DEPTH)
    finally:
        os.close(file)
    return np.frombuffer(memory, dtype=np.float32).reshape(rows, DEPTH)


class _Watched(NamedTuple):
    values: npt.NDArray[np.float32]
    """(DEPTH,)."""
    end_id: int
    said: Sequence[int]
    """Tokens so far: vLLM's own list, which grows."""


class EndsToBoard(LogitsProcessor):
    """vLLM makes one per engine process. It must come before processors that change logits."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Watched] = {}
        self._boards: dict[str, npt.NDArray[np.float32]] = {}
        """By path: an engine has one for as long as it lives."""

    def is_argmax_invariant(self) -> bool:
        """Yes, but vLLM does not ask those for greedy requests."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests from row to row."""
        process_dict_updates(self._rows, batch_update, self._watched)

    def apply(self, logits: Tensor) -> Tensor:
        """Write, and change nothing. ``logits``: (requests, vocabulary), float32."""
        if self._rows:
            rows = list(self._rows)
            is_whole = 2 * len(rows) > len(logits)  # to copy most of it costs more than the rest
            picked = logits if is_whole else logits[rows]
            end_id = self._rows[rows[0]].end_id  # the model's, so that of all
            log_p = (picked[:, end_id] - picked.logsumexp(dim=-1)).tolist()
            for place, row in zip(rows if is_whole else range(len(rows)), rows, strict=True):
                watched = self._rows[row]
                watched.values[len(watched.said) % DEPTH] = log_p[place]
        return logits

    def _watched(self, params: SamplingParams, _prompt: list[int] | None, said: list[int]) -> _Watched | None:
        arguments = (params.extra_args or {}).get(_KEY)
        if arguments is None:
            return None
        path, rows, row, end_id = arguments
        if path not in self._boards:
            self._boards[path] = _mapped(path, rows)
        return _Watched(self._boards[path][row], end_id, said)
