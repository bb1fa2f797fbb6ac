"""Third stage: the transformer learns the velocity from pictures' latents to noise, given the class.

Rectified flow: z_t = (1 - t) x + t noise, v = noise - x, with t from 0 to 1; one class in ten is dropped for guidance;
weights are averaged over steps. A run that was killed goes on from its state file and ends with the same weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.families.dit_moe.config import NANO, DitMoeConfig
from models.families.dit_moe.network import DitMoe, Gated, balance_loss
from models.training.average import follow
from models.training.dit_moe.optimizer import Optimizers
from models.training.dit_moe.pictures import COLOURS, NUM_CLASSES, THINGS
from models.training.products import fast_products
from models.training.stages import log_of, save_state, saved_state

STATE_FILE = "training_state.pt"
DROPPED = 0.1
BALANCE = 0.01
"""Weight of the load balance, as published."""
LOG_EVERY = 25
HELD_BACK = 256
"""Latents that are for measuring alone."""


@dataclass(frozen=True)
class TrainConfig:
    """``average_decay``: of the weights' running mean. ``uniform_share``: times drawn evenly; the others are
    logit-normal, with more of the middle, where shapes are decided."""

    steps: int = 4000
    batch: int = 96
    lr: float = 3e-3
    average_decay: float = 0.998
    uniform_share: float = 0.3
    seed: int = 1
    save_every: int = 100


class SummedClasses(nn.Module):
    """Embeddings of classes that are the sum of a colour's and a thing's, so that what is learnt of a colour serves all
    things. Published weights have a table of classes; ``table`` makes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.colours = nn.Parameter(torch.randn(len(COLOURS), width) * 0.2)
        self.things = nn.Parameter(torch.randn(len(THINGS), width) * 0.2)
        self.none = nn.Parameter(torch.zeros(1, width))

    def table(self) -> Tensor:
        """Rows as ``DitMoe`` has them, the last for no class."""
        return torch.cat([(self.colours[:, None] + self.things).flatten(0, 1), self.none])

    def forward(self, classes: Tensor) -> Tensor:  # noqa: D102
        return F.embedding(classes, self.table())


def make_network(config: DitMoeConfig = NANO) -> DitMoe:
    """A fresh one with ``SummedClasses``.

    Its blocks begin slightly open, and its times louder than published: they only go from 0 to 1, and would hardly be
    told apart. Both save hundreds of steps.
    """
    network = DitMoe(replace(config, num_classes=NUM_CLASSES))
    network.y_embedder = SummedClasses(config.width)  # type: ignore[assignment]
    with torch.no_grad():
        nn.init.normal_(network.t_embedder.mlp[0].weight, std=0.2)
        nn.init.normal_(network.t_embedder.mlp[2].weight, std=0.1)
        for block in network.blocks:
            block.adaLN_modulation[1].bias.view(6, -1)[[2, 5]] = 0.2
    return network


def exported(network: DitMoe) -> dict[str, Tensor]:
    """Published names and a table of classes."""
    state = {name: one for name, one in network.state_dict().items() if not name.startswith("y_embedder.")}
    classes: Any = network.y_embedder
    return {**state, "y_embedder.embedding_table.weight": classes.table().detach()}


def train(
    out: Path,
    latents: Tensor,
    labels: Tensor,
    config: TrainConfig,
    network: DitMoeConfig = NANO,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Train, or go on with an interrupted run. Returns the averaged weights as they are published; ``out`` gets the
    log, and the state to go on from.

    Raises: ValueError: the interrupted run was of another configuration.
    """
    torch.manual_seed(config.seed)
    run = _Run(out, latents.float(), labels, config, make_network(network))
    run.resume()
    run.to_the_end(on_step)
    return exported(run.average)


class _Run:
    """Everything that a training run has to remember."""

    def __init__(self, out: Path, latents: Tensor, labels: Tensor, config: TrainConfig, network: DitMoe) -> None:
        self.out, self.latents, self.labels, self.config = out, latents, labels, config
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.optimizers = Optimizers(network, config.lr)
        self.step = 0
        self.log = log_of(out, "transformer")

    def to_the_end(self, on_step: Callable[[int, int], None]) -> None:
        recent: list[tuple[float, float]] = []
        started_s = time.monotonic()
        while self.step < self.config.steps:
            recent.append(self._one_step())
            self.step += 1
            if self.step % LOG_EVERY == 0:
                flow, balance = (sum(values) / len(recent) for values in zip(*recent, strict=True))
                step_s = (time.monotonic() - started_s) / len(recent)
                self.log.write(step=self.step, loss=flow, balance=balance, step_s=step_s)
                recent.clear()
                started_s = time.monotonic()
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self._save()
                self.log.write(step=self.step, held_back=self._held_back())
            on_step(self.step, self.config.steps)

    def _one_step(self) -> tuple[float, float]:
        random = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        rows = torch.randint(HELD_BACK, len(self.latents), (self.config.batch,), generator=random)
        dropped = torch.rand(len(rows), generator=random) < DROPPED
        classes = torch.where(dropped, NUM_CLASSES, self.labels[rows])
        times = sample_times(len(rows), self.config.uniform_share, random)
        noise = torch.randn(self.latents[rows].shape, generator=random)
        flow, balance = losses(self.network, self.latents[rows], noise, times, classes)
        (flow + BALANCE * balance).backward()  # type: ignore[no-untyped-call]
        self.optimizers.step(self.step / self.config.steps, self.step)
        follow(self.average, self.network, min(self.config.average_decay, (self.step + 1) / (self.step + 10)))
        return float(flow.detach()), float(balance.detach())

    @torch.no_grad()
    def _held_back(self) -> float:
        """The loss of the averaged weights on latents that are never trained on, with the same noise each time."""
        random = torch.Generator().manual_seed(0)
        x, classes = self.latents[:HELD_BACK], self.labels[:HELD_BACK]
        times = (torch.arange(HELD_BACK) + 0.5) / HELD_BACK
        return float(losses(self.average, x, torch.randn(x.shape, generator=random), times, classes)[0])

    def _save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "step": self.step,
        }
        save_state(self.out / STATE_FILE, asdict(self.config), state)

    def resume(self) -> None:
        """Go on where an earlier run of the same ended."""
        state = saved_state(self.out / STATE_FILE, asdict(self.config))
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.step = state["step"]


def losses(network: DitMoe, x: Tensor, noise: Tensor, times: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of the velocity, and the load balance of the gates."""
    t = times[:, None, None, None]
    gated: list[Gated] = []
    with fast_products(), sdpa_kernel(SDPBackend.MATH):  # of short sequences the fastest on a CPU
        velocity = network((1 - t) * x + t * noise, times, classes, gated=gated)
    return (velocity.float() - (noise - x)).square().mean(), balance_loss(gated)


def sample_times(count: int, uniform_share: float, random: torch.Generator) -> Tensor:
    """In (0, 1]."""
    even = torch.rand(count, generator=random)
    middle = torch.sigmoid(torch.randn(count, generator=random))
    return torch.where(torch.rand(count, generator=random) < uniform_share, even, middle).clamp(1e-3, 1.0)
