"""The nano classifier, loaded once per test process."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from models.contract import Variant
from models.families.dyn_perceiver.load import load_model
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.registry import find
from serving.replica.staged.engine import warm_up


def nano_variant() -> Variant:
    """Registry entry."""
    return find("dyn-perceiver-nano")[1]


@cache
def nano_runner() -> DynPerceiverRunner:
    """The committed checkpoint, ready to run on one thread. It keeps no samples, so tests may share it."""
    torch.set_num_threads(1)
    return DynPerceiverRunner(load_model(nano_variant()), nano_variant())


@cache
def nano_bytes_per_sample() -> int:
    """Most bytes that one sample's share of a full batch takes."""
    side = nano_variant().io.input_size
    return warm_up(nano_runner(), np.zeros((side, side, 3), np.uint8), 4, {}).bytes_per_sample
