"""Early exits, delayed: pictures on which a classifier is never sure, so that it pays for its whole network.

DeepSloth (ICLR 2021, arXiv 2010.02432) in its manner: a bounded change that pulls the answer of every exit towards the
uniform one, by projected gradient descent. The worst case of such a classifier is its whole network, so a delay is
bounded by what the last exit costs over what is usual.

Legend: B pictures, E exits, S side of a picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loadtest.adversarial.perturbation import EPS, Additive, as_pixels, quantised
from loadtest.adversarial.victim import Pictures
from models.contract import Family, Point, Variant
from models.layers.pixels import Normalise
from models.methods.early_exit.knobs import NONE

Exits = NDArray[np.int64]
ITERATIONS = 30
STEP = 1 / 255


@dataclass(frozen=True, kw_only=True)
class Delay:
    """What an attack on B pictures did. Exits (B,) count from 0. ``macs_before``, ``macs_after``: operations (B,).
    ``right_before``, ``right_after``: shares of pictures that are named right."""

    exits_before: Exits
    exits_after: Exits
    macs_before: NDArray[np.float64]
    macs_after: NDArray[np.float64]
    right_before: float
    right_after: float


class ExitVictim:
    """A classifier with early exits at one of its points; weights are frozen."""

    def __init__(self, family: Family, variant: Variant, point: Point) -> None:
        assert family.build is not None
        assert family.runner is not None
        self._network: Any = family.build.load()(variant)
        self._runner: Any = family.runner.load()(self._network, variant)
        self._normalise = Normalise(variant.io)
        self.num_exits: int = variant.io.num_exits
        self.macs: tuple[int, ...] = variant.config["exit_macs"]
        self._thresholds = [float(point.get(f"exit_{k + 1}", NONE)) for k in range(self.num_exits - 1)]

    def logits(self, pixels: Tensor) -> list[Tensor]:
        """Of every exit, differentiable in raw pixels (B, S, S, 3) of 0..1."""
        state: Any = (self._normalise(255.0 * pixels),)
        found = []
        for index in range(self.num_exits):
            state, logits = self._network.run_stage(index, state)
            found.append(logits)
        return found

    def serve(self, pictures: Pictures) -> tuple[Exits, NDArray[np.int64]]:
        """Exit and class of each picture, as the runner that is served gives them."""
        state = self._runner.begin(torch.from_numpy(pictures))
        _, outputs, _ = self._runner.run(state, 0, self.num_exits)
        probabilities = torch.stack([output["probabilities"] for output in outputs])
        sure = probabilities[:-1].amax(-1) >= torch.tensor(self._thresholds)[:, None]
        leaves = np.concatenate([sure.numpy(), np.ones((1, len(pictures)), bool)]).argmax(0)  # the first that is sure
        classes = probabilities[leaves, np.arange(len(pictures))].argmax(-1)
        return leaves, classes.numpy()


def uniformity(logits: Sequence[Tensor]) -> Tensor:
    """Cross-entropy with the uniform answer, summed over exits and pictures: lowest where no class is preferred."""
    return -torch.stack([one.log_softmax(-1).mean(-1) for one in logits]).sum()


@dataclass(frozen=True, slots=True)
class Unsure:
    """Pictures (B, S, S, 3) on which no exit is sure, each iteration's loss of a picture, and CPU seconds of all."""

    pictures: Pictures
    losses: tuple[float, ...]
    cpu_s: float


def unsettle(
    victim: ExitVictim, clean: Pictures, *, eps: float = EPS, iterations: int = ITERATIONS, seed: int = 0
) -> Unsure:
    """Attack pictures; the same for every point, for thresholds are not looked at."""
    started, space, pixels = time.process_time(), Additive(eps), as_pixels(clean)
    theta, losses = space.project(pixels, space.start("uniform", pixels, seed)), []
    for _ in range(iterations):
        leaf = theta.clone().requires_grad_()
        loss = uniformity(victim.logits(space.pixels(pixels, leaf)))
        (gradient,) = torch.autograd.grad(loss, leaf)
        losses.append(float(loss.detach()) / len(clean))
        theta = space.project(pixels, theta - STEP * gradient.sign())
    return Unsure(quantised(space.pixels(pixels, theta)), tuple(losses), time.process_time() - started)


def delay(victim: ExitVictim, clean: Pictures, attacked: Pictures, labels: NDArray[np.int64]) -> Delay:
    """What attacked pictures cost at the victim's point, beside clean ones."""
    (before, named_before), (after, named_after) = victim.serve(clean), victim.serve(attacked)
    return Delay(
        exits_before=before,
        exits_after=after,
        macs_before=np.asarray(victim.macs, np.float64)[before],
        macs_after=np.asarray(victim.macs, np.float64)[after],
        right_before=float((named_before == labels).mean()),
        right_after=float((named_after == labels).mean()),
    )
