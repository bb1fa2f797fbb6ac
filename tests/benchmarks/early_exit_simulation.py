"""The same search on the simulator's virtual clock: what the policies alone can do with the stage costs measured here.

No event loop, no hand-over between threads, no noise: the difference to the measured figures is what those cost.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import bounded, poisson
from models.training.classify.pictures import Pictures, exit_outputs
from schedulers.lab.simulator import ExitWorld, exit_unit, simulate
from tests.benchmarks.early_exit_load import GOOD_SHARE
from tests.benchmarks.early_exit_sides import Side, Workload

_BISECTIONS = 7


def confidences(work: Workload) -> NDArray[np.float64]:
    """Confidence of each exit for each picture, (N, E): the network's own, or the drawn ones."""
    if work.drawn_exits is not None:
        return (np.arange(work.runner.num_stages) >= work.drawn_exits[:, None]).astype(np.float64)
    assert work.labels is not None, "pictures without labels have drawn exits"
    return exit_outputs(work.runner, Pictures(np.stack(work.images), work.labels)).confidences.T.astype(np.float64)


def capacity_per_s(
    work: Workload, side: Side, at_exits: NDArray[np.float64], deadline_s: float, duration_s: float
) -> float:
    """Highest Poisson rate at which 99% of the samples are good, by bisection up to what the engine could ever do."""
    low, high = 0.0, 1.0 / work.seconds_per_sample(side.point, side.max_batch)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _good_share(work, side, at_exits, deadline_s, middle, duration_s) >= GOOD_SHARE:
            low = middle
        else:
            high = middle
    return low


def _good_share(
    work: Workload, side: Side, at_exits: NDArray[np.float64], deadline_s: float, rate_per_s: float, duration_s: float
) -> float:
    arrivals_s = bounded(poisson(rate_per_s, seed=7), duration_s=duration_s)
    pictures = np.random.default_rng(7).integers(len(at_exits), size=len(arrivals_s))
    rows = [tuple(row) for row in at_exits.tolist()]
    trace = [
        exit_unit(
            arrived_s=arrived_s,
            deadline_s=arrived_s + deadline_s,
            thresholds=side.point.thresholds,
            confidences=rows[picture],
        )
        for arrived_s, picture in zip(arrivals_s, pictures.tolist(), strict=True)
    ]
    if not trace:
        return 1.0
    policy = side.make(work.cost_model(), side.max_batch)
    return simulate(policy, trace, ExitWorld(work.cost_model().batch_s)).report().good_share
