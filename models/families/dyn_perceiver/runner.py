"""A ``DynPerceiver`` cut at its exits, as its host runs it.

Nothing of a later stage is computed before someone asks for it: exit 1 runs before feature stage 3, exit 2 before
feature stage 4. Equal to ``DynPerceiver.forward`` bit for bit on the same batches. When rows are regrouped, libraries
may pick other kernels for another batch size, and rounding then moves logits by about 1e-6 (tested at 1e-4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.contract import Point, Variant
from models.families.dyn_perceiver.model import DynPerceiver, State
from models.layers.pixels import Normalise, check_pictures


class DynPerceiverRunner:
    """See ``models.contract.Staged``. State: what ``DynPerceiver.run_stage`` takes, before exit 1 the bytes."""

    def __init__(self, network: DynPerceiver, variant: Variant) -> None:
        self.num_stages: int = variant.io.num_exits
        self.device = network.latent.device
        self._network = network.eval()
        self._side = variant.io.input_size
        self._normalise = Normalise(variant.io, self.device)

    def begin(self, batch: Any, points: Sequence[Point] = ()) -> State:
        """Take uint8 pictures (B, S, S, 3), which must not change before stage 1 has run. Thresholds are the host's.

        Raises:
            ValueError: wrong dtype or shape.
        """
        return (check_pictures(torch.as_tensor(batch), self._side).to(self.device),)

    @torch.inference_mode()
    def run(
        self, state: State, first_stage: int, num_stages: int
    ) -> tuple[State, Sequence[Mapping[str, Tensor]], Tensor]:
        """Run consecutive stages; see ``models.contract.Staged.run``."""
        outputs = []
        for index in range(first_stage, first_stage + num_stages):
            if index == 0:
                state = (self._normalise(state[0]),)
            state, logits = self._network.run_stage(index, state)
            outputs.append({"probabilities": torch.softmax(logits.float(), 1)})
        return state, outputs, outputs[-1]["probabilities"].amax(1)
