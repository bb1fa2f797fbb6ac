"""Counts where a checkpoint's gates send tokens, by how far a picture is, for ``models.routing_table``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from models.contract import Experts, Job, JobState, OnProgress, Variant
from models.routing_table import write_routing

NUM_BUCKETS = 10
_TOGETHER = 8


@torch.inference_mode()
def calibrate_routing(
    runner: Job,
    variant: Variant,
    states: Sequence[JobState],
    *,
    num_buckets: int = NUM_BUCKETS,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Path:
    """Make all of these pictures, which the runner has opened and which may share slices, and write the table.

    Returns its path. Raises: ValueError: fewer steps than buckets.
    """
    counts: npt.NDArray[np.int64] | None = None
    tokens = steps = 0
    for start in range(0, len(states), _TOGETHER):
        group = states[start : start + _TOGETHER]
        num_steps = runner.remaining(group[0]).get("denoise", 0)
        if num_steps < num_buckets:
            raise ValueError(f"{num_steps} steps do not fill {num_buckets} buckets; calibrate with more steps")
        for step, loads in _loads(runner, group):
            counts = np.zeros((num_buckets, *loads.shape), np.int64) if counts is None else counts
            counts[step * num_buckets // num_steps] += loads
            tokens += int(loads[0].sum())
            steps += len(group)
        on_progress("counting tokens of experts", min(start + _TOGETHER, len(states)), len(states))
    assert counts is not None, "there are pictures to be made"
    return write_routing(variant, counts.tolist(), rows=len(states), tokens=max(1, round(tokens / steps)))


def _loads(runner: Job, states: Sequence[JobState]) -> Any:
    """Of each denoising step, its number and the tokens of all of them, by layer and expert."""
    counting, step = cast("Experts", runner), 0
    while left := runner.remaining(states[0]):
        runner.step(states)
        if next(iter(left)) == "denoise":
            yield step, np.sum([np.asarray(one) for one in counting.take_loads()], axis=0)
            step += 1
