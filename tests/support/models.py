"""The nano model, loaded once per test process."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from models.families.dyn_perceiver.load import load_model
from models.families.dyn_perceiver.staged import StagedDynPerceiver
from models.registry import ModelSpec, get_spec


def nano_spec() -> ModelSpec:
    """Registry entry."""
    return get_spec("dyn-perceiver-nano")


@cache
def nano_staged() -> StagedDynPerceiver:
    """The committed checkpoint, ready to run on one thread. It keeps no samples, so tests may share it."""
    torch.set_num_threads(1)
    return StagedDynPerceiver(load_model(nano_spec()), nano_spec())


@cache
def nano_bytes_per_sample() -> int:
    """Most bytes that one sample's share of a full batch takes between two stages."""
    staged, side = nano_staged(), nano_spec().input_size
    states = staged.begin(np.zeros((4, side, side, 3), dtype=np.uint8))
    peak_bytes = states[0].nbytes
    for _ in range(staged.num_exits):
        states, _logits = staged.advance(states)
        peak_bytes = max(peak_bytes, states[0].nbytes)
    return peak_bytes
