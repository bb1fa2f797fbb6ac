"""Several networks of one architecture, of which one at a time is on the device: the rest wait in host memory.

For models whose experts take turns (Wan2.2: one network for the early steps, another for the late ones), where the
device has no room for both. The network on the device keeps its memory; to swap is to copy other weights into it. The
scheduler groups jobs so that swaps are few: see ``schedulers.policies.experts``, and ``contract.ExpertPhases``.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.checkpoint import check_against

States = Mapping[str, Tensor]


def mapped(path: Path) -> States:
    """Weights that stay in their file, and are read from there when they are copied. Raises: ValueError."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


class Residency:
    """One thread swaps and runs. ``swaps`` and ``seconds``: how often another network was copied to the device since
    the first one was, and how long all copies took.

    ``network``: on the device, with whatever weights. ``states``: weights by expert, on the host.
    Raises: ValueError: weights of another architecture, or none.
    """

    def __init__(self, network: nn.Module, states: Mapping[Hashable, States]) -> None:
        if not states:
            raise ValueError("there is no expert; give the weights of at least one")
        for state in states.values():
            check_against(network, state)
        self._network = network
        self._states = states
        self._targets = network.state_dict()
        self._resident: Hashable = None
        self.swaps = 0
        self.seconds = 0.0

    @torch.no_grad()
    def on_device(self, expert: Hashable) -> tuple[nn.Module, float]:
        """The network with the weights of ``expert``, and the seconds that it took to bring them.

        Raises: KeyError: there is no such expert.
        """
        if expert == self._resident:
            return self._network, 0.0
        state, started_s = self._states[expert], time.perf_counter()
        was_empty, self._resident = self._resident is None, None  # if this fails halfway, nobody is there
        for name, target in self._targets.items():
            target.copy_(state[name], non_blocking=True)
        if any(target.is_cuda for target in self._targets.values()):
            torch.cuda.synchronize()
        self._resident = expert
        elapsed_s = time.perf_counter() - started_s
        self.swaps += not was_empty
        self.seconds += elapsed_s
        return self._network, elapsed_s
