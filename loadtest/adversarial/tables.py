"""What attacks on other models than chats come to, as plain figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from loadtest.adversarial.dearest import dearest
from loadtest.adversarial.exits import ExitVictim, delay, unsettle
from loadtest.adversarial.experts import Request, busiest_rank, hottest, observe, prompts_of, skew, sum_loads
from loadtest.adversarial.figures import ratio_of_means
from loadtest.adversarial.runs import WATTS
from models.io import ClipRequest, ImageRequest
from models.operating_points import read_table
from models.registry import find
from models.training.dyn_perceiver.evaluation import held_out_sets

CROWD = 8
"""Requests that pile up together: a batch."""
STEPS = 4
"""Of each picture whose experts are looked at."""
MOST_PICTURES = 10
"""That OpenAI's API has in one request."""
_SHOWN = ("count", "num_frames")


def exits_table(model: str, pictures: int, eps: float, iterations: int) -> list[dict[str, Any]]:
    """At every calibrated point that has early exits: what a bounded change of clean held-out pictures does."""
    family, variant = find(model)
    table = read_table(variant)
    clean = held_out_sets("test")["clean"]
    images, labels = clean.images[:pictures], clean.labels[:pictures]
    attacked = unsettle(ExitVictim(family, variant, {}), images, eps=eps, iterations=iterations)
    # Joules of a picture alone, up to each exit.
    joules = WATTS * np.cumsum([one.seconds[1].seconds for one in table.slices])
    rows = []
    for name, point in table.points.items():
        victim = ExitVictim(family, variant, point.settings)
        done = delay(victim, images, attacked.pictures, labels)
        rows.append(
            {
                "point": name,
                "pictures": len(images),
                "exits_before": np.bincount(done.exits_before, minlength=victim.num_exits).tolist(),
                "exits_after": np.bincount(done.exits_after, minlength=victim.num_exits).tolist(),
                "macs_before": float(done.macs_before.mean()),
                "macs_after": float(done.macs_after.mean()),
                "amplification": ratio_of_means(done.macs_after, done.macs_before),
                "bound": float(victim.macs[-1] / done.macs_before.mean()),
                "joules_before": float(joules[done.exits_before].mean()),
                "joules_after": float(joules[done.exits_after].mean()),
                "energy_amplification": ratio_of_means(joules[done.exits_after], joules[done.exits_before]),
                "attacker_j": WATTS * attacked.cpu_s / len(images),
                "right_before": done.right_before,
                "right_after": done.right_after,
            }
        )
    return rows


def experts_table(model: str, ranks: int, seeds: int) -> dict[str, Any]:
    """Batches of ``CROWD`` requests: of all prompts at random, of the hottest prompts, of the hottest prompts with the
    hottest seeds."""
    family, variant = find(model)
    point = family.of(variant).check_point({"num_inference_steps": STEPS})
    prompts = prompts_of(variant)
    every = list(observe(family, variant, [(prompt, seed) for prompt in prompts for seed in range(seeds)], point))
    first = [request for request in every if request.seed == 0]
    random = np.random.default_rng(0)
    usual = [[every[i] for i in random.choice(len(every), CROWD, replace=False)] for _ in range(200)]
    by_prompt, by_seed = hottest(first, CROWD, ranks), hottest(every, CROWD, ranks)
    return {
        "ranks": ranks,
        "requests_observed": len(every),
        "usual": _crowds(usual, ranks),
        "by_prompt": {**_crowds([by_prompt], ranks), "prompts": [one.prompt for one in by_prompt]},
        "by_seed": {**_crowds([by_seed], ranks), "asked": [[one.prompt, one.seed] for one in by_seed]},
    }


def _crowds(crowds: Sequence[Sequence[Request]], ranks: int) -> dict[str, float]:
    """Means over crowds: the busiest expert, and the busiest rank, over the mean."""
    loads = [sum_loads(crowd) for crowd in crowds]
    return {
        "skew": float(np.mean([skew(one) for one in loads])),
        "busiest_rank": float(np.mean([busiest_rank(one, ranks) for one in loads])),
    }


def dearest_table() -> list[dict[str, Any]]:
    """Pictures and clips: the dearest request that is allowed beside the usual one."""
    rows = []
    for model in ("dit-moe-nano", "vdit-nano"):
        family, variant = find(model)
        done = dearest(family, variant, _requests(variant.io))
        rows.append(
            {
                "model": model,
                "request": {name: value for name, value in asdict(done.request).items() if name in _SHOWN},
                "settings": dict(done.settings),
                "macs_usual": done.usual,
                "macs_worst": done.worst,
                "amplification": done.amplification,
                "bytes_usual": done.bytes_usual,
                "bytes_worst": done.bytes_worst,
            }
        )
    return rows


def _requests(io: Any) -> list[Any]:
    """The usual request first, and larger ones."""
    if io.request is ImageRequest:
        width, height = io.size
        return [ImageRequest(width=width, height=height, prompt=io.example, count=n) for n in (1, MOST_PICTURES)]
    return [ClipRequest(num_frames=frames) for frames in io.frame_counts]
