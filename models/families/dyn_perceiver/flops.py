"""FLOPs to reach each exit, counted by running the model on the meta device.

Convention: one multiply-accumulate counts as one, as in the paper. Counted: convolutions, linear layers and the two
matrix products of attention. Not counted: biases, norms, activations, softmax and pooling. The official code also
counts poolings as one per element and leaves out squeeze-and-excite in RegNet (docs/models/dyn-perceiver.md).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.families.dyn_perceiver.config import NUM_EXITS
from models.families.dyn_perceiver.model import DynPerceiver, State


@torch.no_grad()
def exit_flops(model: DynPerceiver) -> list[int]:
    """Multiply-accumulates for one sample to reach exits 1 to 4, cumulative. Runs nothing on real data."""
    meta = copy.deepcopy(model).requires_grad_(False).to("meta").eval()
    side = model.config.input_size
    state: State = (torch.empty(1, side, side, 3, device="meta"),)
    total, counts = 0, []
    for index in range(NUM_EXITS):
        counter = FlopCounterMode(display=False)
        with counter:
            state, _ = _run(meta, index, state)
        total += counter.get_total_flops() // 2
        counts.append(total)
    return counts


def _run(model: DynPerceiver, index: int, state: State) -> tuple[State, Tensor]:
    return model.run_stage(index, state)
