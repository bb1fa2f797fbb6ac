"""Networks and runners of the toy families, and mutants of them that break the contract in one way each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.checkpoint import load_into, read_weights
from models.contract import Point, Variant
from tests.families.toy_cards import CLASSES, DEPTH, SIDE, WIDTH


class Network(nn.Module):
    """A few linear layers with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(SIDE * SIDE * 3, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def enter(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.stem(pictures.flatten(1).float() / 255)
        return features

    def layer(self, index: int, features: Tensor) -> Tensor:
        return torch.tanh(self.layers[index](features))

    def leave(self, features: Tensor) -> Tensor:
        return torch.softmax(self.head(features), 1)


def build(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network().eval().requires_grad_(False)
    if not random_weights:
        assert variant.weights is not None
        load_into(network, read_weights(variant.weights))
    return network


class UnaryRunner:
    def __init__(self, network: Network, variant: Variant) -> None:
        self.network = network

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        rows = []
        for row, point in zip(batch, points, strict=True):
            features = self.network.enter(row[None])
            for index in range(int(point["depth"])):
                features = self.network.layer(index, features)
            rows.append(self.network.leave(features))
        return {"probabilities": torch.cat(rows)}


class StagedRunner:
    num_stages = DEPTH

    def __init__(self, network: Network, variant: Variant) -> None:
        self.network = network

    def begin(self, batch: Tensor, points: Sequence[Point]) -> Any:
        return (batch,)

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Sequence[Mapping[str, Tensor]], Tensor]:
        (features,) = state
        passed = []
        for index in range(first_stage, first_stage + num_stages):
            features = self.network.layer(index, features if index else self.network.enter(features))
            passed.append({"probabilities": self.network.leave(features)})
        return (features,), passed, passed[-1]["probabilities"].amax(1)


# -- mutants ---------------------------------------------------------------------------------------------------------


class UnaryOfTheBatch(UnaryRunner):
    """Centres by the mean of the batch, as a batch norm left in training mode would."""

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        scores = super().forward(batch, points)["probabilities"]
        return {"probabilities": torch.softmax(scores - 0.1 * scores.mean(0), 1)}


class UnaryOfTheFirstPoint(UnaryRunner):
    """Gives every row the point of the first."""

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        return super().forward(batch, [points[0]] * len(points))


class UnaryThatRemembers(UnaryRunner):
    """Keeps something of the batch before."""

    seen = torch.zeros(CLASSES)

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        scores = super().forward(batch, points)["probabilities"]
        mixed = torch.softmax(scores + 0.01 * self.seen, 1)
        self.seen = scores[-1].clone()
        return {"probabilities": mixed}


class UnaryOfTheRowBefore(UnaryRunner):
    """A row sees its neighbour, as an attention without a mask would."""

    def forward(self, batch: Tensor, points: Sequence[Point]) -> Mapping[str, Tensor]:
        scores = super().forward(batch, points)["probabilities"]
        return {"probabilities": 0.9 * scores + 0.1 * scores.roll(1, 0)}


class StagedOfTheBatch(StagedRunner):
    """Its second stage sees the mean of the batch."""

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        if first_stage:
            state = (state[0] - 0.1 * state[0].mean(0),)
        return super().run(state, first_stage, num_stages)


class StagedThatRemembers(StagedRunner):
    """Keeps the state in itself rather than in what it returns."""

    inside: Any = None

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        out, passed, confidence = super().run(state if first_stage == 0 else self.inside, first_stage, num_stages)
        self.inside = out
        return (torch.zeros_like(out[0]),), passed, confidence


class StagedThatCounts(StagedRunner):
    """What it gives depends on how often it ran."""

    runs = 0

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        self.runs += 1
        out, passed, confidence = super().run(state, first_stage, num_stages)
        return out, passed, confidence + 0.001 * self.runs


class StagedWithObjects(StagedRunner):
    """Its state is no plain data."""

    def run(self, state: Any, first_stage: int, num_stages: int) -> tuple[Any, Any, Tensor]:
        out, passed, confidence = super().run(state[:1], first_stage, num_stages)
        return (*out, self), passed, confidence


def build_that_ignores_weights(variant: Variant, device: str = "cpu", *, random_weights: bool = False) -> Network:
    return build(variant, device, random_weights=True)
