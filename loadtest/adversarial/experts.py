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

_ROUNDS = 20
Loads = NDArray[np.int64]
"""(L, E): tokens by layer and expert."""


@dataclass(frozen=True, slots=True)
class Request:
    """A picture that is asked for, and where its tokens went."""

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
    family: Family, variant: Variant, asked: Sequence[tuple[str, int]], point: Point, *, batch: int = 8
) -> Iterator[Request]:
    """Run all steps of each request and say where its tokens went."""
    assert family.build is not None
    assert family.runner is not None
    runner: Any = family.runner.load()(family.build.load()(variant), variant)
    width, height = variant.io.size
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        request_of = variant.io.request
        states = [runner.open(request_of(width=width, height=height, prompt=p), point, seed) for p, seed in part]
        loads = np.zeros((len(part), *runner.expert_shape), np.int64)
        while "denoise" in runner.remaining(states[0]):
            runner.step(states)
            loads += np.stack(runner.take_loads())
        for (prompt, seed), one in zip(part, loads, strict=True):
            yield Request(prompt, seed, one)


def hottest(found: Sequence[Request], count: int, ranks: int) -> list[Request]:
    """The requests that pile up most when they run together. A crowd has to agree, layer by layer, on a rank.

    From each request's own busiest ranks: those that load them most are taken, then the ranks that these load most.
    """
    by_rank = np.stack([one.loads.reshape(len(one.loads), ranks, -1).sum(-1) for one in found])
    shares = by_rank / by_rank.sum(-1, keepdims=True)
    crowds = {_crowd(shares, start.argmax(-1), count) for start in shares}
    best = max(crowds, key=lambda crowd: busiest_rank(sum_loads([found[i] for i in crowd]), ranks))
    return [found[i] for i in best]


def _crowd(shares: NDArray[np.float64], ranks: NDArray[np.int64], count: int) -> tuple[int, ...]:
    """Numbers of the requests that load ``ranks`` (L,) most, once nothing changes any more. ``shares``: (N, L, R)."""
    layers = np.arange(shares.shape[1])
    for _ in range(_ROUNDS):
        crowd = np.sort(shares[:, layers, ranks].mean(1).argsort(kind="stable")[::-1][:count])
        before, ranks = ranks, shares[crowd].sum(0).argmax(-1)
        if (ranks == before).all():
            break
    return tuple(map(int, crowd))


def sum_loads(some: Sequence[Request]) -> Loads:
    """Of a batch."""
    total: Loads = np.sum([request.loads for request in some], axis=0)
    return total
