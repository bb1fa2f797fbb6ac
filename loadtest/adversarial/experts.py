"""Requests that pile up on few experts: which prompt and which seed send most tokens to the same ones?

Gates decide by what a picture is to become and by its noise, and both are the caller's to choose. Two ways to choose:

    by prompt   ask for each prompt once and look at where its tokens went
    by seed     the same, for one prompt and many seeds

An attacker of ours reads loads from the runner; outside, it would have to learn them from latencies. With experts on R
ranks, a layer is over when the busiest rank is: the attack costs the busiest rank over the mean.

Legend: L layers, E experts, R ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.class_words import number_of
from models.contract import Family, Point, Variant

Loads = NDArray[np.int64]
"""(L, E): tokens by layer and expert."""


@dataclass(frozen=True, slots=True)
class Request:
    """A picture that is asked for, and where its tokens went in the first ``steps`` steps."""

    prompt: str
    seed: int
    loads: Loads


def skew(loads: Loads) -> float:
    """Tokens of the busiest expert over the mean, averaged over layers: 1 is even, E is all on one."""
    return float((loads.max(-1) / loads.mean(-1)).mean())


def busiest_rank(loads: Loads, ranks: int) -> float:
    """Tokens of the busiest rank over the mean, averaged over layers; experts lie on ranks in order, equally many.

    Raises: ValueError: they do not divide.
    """
    if loads.shape[1] % ranks:
        raise ValueError(f"{loads.shape[1]} experts do not lie equally on {ranks} ranks")
    by_rank = loads.reshape(len(loads), ranks, -1).sum(-1)
    return float((by_rank.max(-1) / by_rank.mean(-1)).mean())


def prompts_of(variant: Variant) -> list[str]:
    """Every prompt that a model of classes knows by words, such as ``a red 7``."""
    groups: Sequence[Sequence[str]] = variant.config["classes"]
    found = [" ".join(words) for words in itertools.product(*groups)]
    for prompt in found:
        number_of(variant.config["classes"], prompt)  # raises where it is none
    return found


def observe(
    family: Family, variant: Variant, asked: Sequence[tuple[str, int]], point: Point, *, steps: int = 1, batch: int = 8
) -> Iterator[Request]:
    """Run the first steps of each request and say where its tokens went."""
    assert family.build is not None
    assert family.runner is not None
    runner: Any = family.runner.load()(family.build.load()(variant), variant)
    width, height = variant.io.size
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        request_of = variant.io.request
        states = [runner.open(request_of(width=width, height=height, prompt=p), point, seed) for p, seed in part]
        loads = np.zeros((len(part), *runner.expert_shape), np.int64)
        for _ in range(steps):
            runner.step(states)
            loads += np.stack(runner.take_loads())
        for (prompt, seed), one in zip(part, loads, strict=True):
            yield Request(prompt, seed, one)


def hottest(found: Sequence[Request], count: int, ranks: int) -> list[Request]:
    """The requests that pile up most on one and the same rank: a crowd has to agree on it."""

    def share(request: Request, rank: int) -> float:
        by_rank = request.loads.reshape(len(request.loads), ranks, -1).sum(-1)
        return float((by_rank[:, rank] / by_rank.sum(-1)).mean())

    def crowd(rank: int) -> list[Request]:
        return sorted(found, key=lambda request: share(request, rank), reverse=True)[:count]

    return max(map(crowd, range(ranks)), key=lambda some: busiest_rank(sum_loads(some), ranks))


def sum_loads(some: Sequence[Request]) -> Loads:
    """Of a batch."""
    total: Loads = np.sum([request.loads for request in some], axis=0)
    return total
