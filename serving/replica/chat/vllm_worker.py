"""What runs of ours in vLLM's engine process: an extension of its worker, and sampling with a seed on a CPU.

The latter adds noise that depends on the seed and on the number of tokens so far, on nothing else.

vLLM's own way keeps a generator for each such request and turns it back whenever only a part of a prompt has been read,
which a CPU's generator cannot do: the engine process dies of it (0.32). Here nothing has to be turned back, so that
neither reading a prompt in parts nor setting an answer back for want of memory changes what a seed says.

The token with the largest ``logit / temperature + noise`` is one drawn from the softmax, if the noise is Gumbel's. vLLM
is told to take the likeliest token, which is then that one.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

_KEY = "vireo_seeded"


def seeded_arguments(seed: int, temperature: float, top_p: float) -> dict[str, Any]:
    """``extra_args`` of a request that is sampled here; its own ``temperature`` must be 0 and its ``seed`` absent."""
    return {_KEY: [seed, temperature, top_p]}


class _Seeded(NamedTuple):
    seed: int
    temperature: float
    top_p: float
    said: Sequence[int]
    """Tokens so far: vLLM's own list, which grows."""


class SeededSampling(LogitsProcessor):
    """vLLM makes one per engine process. Named in ``logits_processors`` of the engine's arguments."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Seeded] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it decides which token is the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests from row to row."""
        process_dict_updates(self._rows, batch_update, _seeded)

    def apply(self, logits: Tensor) -> Tensor:
        """Change the rows of requests with a seed, in place. ``logits``: (requests, vocabulary), float32."""
        for row, request in self._rows.items():
            logits[row] = perturbed(logits[row], request.temperature, request.top_p, request.seed, len(request.said))
        return logits


def _seeded(params: SamplingParams, _prompt: list[int] | None, said: list[int]) -> _Seeded | None:
    arguments = (params.extra_args or {}).get(_KEY)
    if arguments is None:
        return None
    seed, temperature, top_p = arguments
    return _Seeded(seed, temperature, top_p, said)


def perturbed(logits: Tensor, temperature: float, top_p: float, seed: int, step: int) -> Tensor:
    """Scores of one row (vocabulary,) whose largest is a token drawn from the top ``top_p`` of the softmax."""
    scaled = logits / temperature
    if top_p < 1.0:
        probabilities, order = scaled.softmax(dim=-1).sort(descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        scaled[order[before >= top_p]] = float("-inf")
    # Neighbouring seeds and steps must not have related noise, hence the hash.
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
    exponential = torch.empty(scaled.shape, dtype=torch.float32).exponential_(generator=generator)
    return scaled - exponential.log().to(scaled)


class WorkerExtension:
    """Mixed into vLLM's worker class. Names are prefixed, since they share a namespace with the worker's own."""

    def vireo_die_with(self: Any, pid: int) -> bool:
        """Kill this process once process ``pid`` has ended, however it ended. vLLM itself stays behind.

        Returns False where the platform cannot watch processes.
        """
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
            return True
        except OSError:
            return False
        threading.Thread(target=_kill_after, args=(watched,), name="vireo-watch-parent", daemon=True).start()
        return True

    def vireo_encoder_seconds(self: Any) -> float:
        """Seconds spent on images since the start, where the model counts them (``encoder_seconds``); on a GPU, those
        until the work was queued."""
        return float(getattr(self.get_model(), "encoder_seconds", 0.0))


def _kill_after(watched: int) -> None:
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    while not poll.poll():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
