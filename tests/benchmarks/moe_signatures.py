"""Part of bench-moe: requests routed by what they wake, beside least work; and the guard against hot experts.

Simulated, as no mixture of experts that chats is served yet: four replicas decode answers of four domains at 128
experts, 8 a token. A domain prefers other experts by s logits; a step reads each distinct expert once, and takes longer
for each. Signatures are those of 48 prompt tokens. Both sides get the same requests. Then
``schedulers.lab.hot_experts``. Figures are means over seeds that nothing was tuned on, with the worst beside them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from schedulers.experts.affinity import Affinity
from schedulers.experts.signature import prompt_shares, sketch_of
from schedulers.lab.hot_experts import p99_s, replay, trace
from schedulers.routing import ReplicaLoad, rank

_REPLICAS, _DOMAINS, _EXPERTS, _CHOSEN, _LAYERS, _BATCH = 4, 4, 128, 8, 3, 16
_STEP_S, _EXPERT_S, _PROMPT, _WAIT = 0.002, 0.0002, 48, 8
_AFFINITY_SEEDS, _HOT_SEEDS = range(9200, 9205), range(9100, 9112)
_LOADS = ((0.4, 0.2), (0.5, 0.5))
"""What honest tenants together and the attacker ask for, of the capacity."""


def measure(*, quick: bool) -> dict[str, Any]:
    """Both."""
    number = 300 if quick else 600
    affinity_seeds, hot_seeds = (_AFFINITY_SEEDS[:1], _HOT_SEEDS[:1]) if quick else (_AFFINITY_SEEDS, _HOT_SEEDS)
    separable = [
        {"s": s, "seeds": [_sides(s, number, seed) for seed in affinity_seeds]} for s in (0.25, 0.5, 1.0, 1.5, 2.0)
    ]
    hot = [
        {"honest": honest, "flood": flood, "seeds": [_hot(honest, flood, quick, seed) for seed in hot_seeds]}
        for honest, flood in _LOADS
    ]
    return {"affinity": separable, "hot": hot}


def _sides(s: float, number: int, seed: int) -> dict[str, Any]:
    return {side: _serve(s, side == "affinity", number, seed) for side in ("least_work", "affinity")} | {"seed": seed}


def _serve(s: float, by_signature: bool, number: int, seed: int) -> dict[str, Any]:
    """Replicas kept full, with a few waiting at each: a request comes for each that is answered."""
    rng = np.random.default_rng(seed)
    preferred = rng.normal(0.0, s, (_DOMAINS, _LAYERS, _EXPERTS))
    domains, lengths = rng.integers(0, _DOMAINS, number), rng.integers(32, 96, number)
    prompts = [_woken(rng, np.broadcast_to(preferred[domain], (_PROMPT, _LAYERS, _EXPERTS))) for domain in domains]
    sketches = [sketch_of(prompt_shares(_counts(one).tolist())) for one in prompts]
    affinity = Affinity(tokens=_BATCH, chosen=_CHOSEN / _EXPERTS)
    running: list[list[list[int]]] = [[] for _ in range(_REPLICAS)]
    waiting: list[list[int]] = [[] for _ in range(_REPLICAS)]
    clock = [(0.0, replica) for replica in range(_REPLICAS)]
    came = [0.0] * number
    distinct: list[float] = []
    latencies: list[float] = []
    sent, now_s = 0, 0.0
    while len(latencies) < number:
        now_s, replica = heapq.heappop(clock)
        while sent < number and sum(map(len, running)) + sum(map(len, waiting)) < _REPLICAS * (_BATCH + _WAIT):
            works = [
                sum(left for _, left in run) + sum(int(lengths[n]) for n in wait)
                for run, wait in zip(running, waiting, strict=True)
            ]
            loads = [ReplicaLoad(replica_id=str(n), queued_s=work / _BATCH * 0.02) for n, work in enumerate(works)]
            added_s, key = float(lengths[sent]) / _BATCH * 0.02, str(sent)
            ranked = affinity.route(loads, sketches[sent], added_s, key) if by_signature else rank(loads, key)
            waiting[int(ranked[0].replica_id)].append(sent)
            came[sent] = now_s
            sent += 1
        own = running[replica]
        while waiting[replica] and len(own) < _BATCH:
            request = waiting[replica].pop(0)
            own.append([request, int(lengths[request])])
        if not own:
            heapq.heappush(clock, (now_s + _STEP_S, replica))
            continue
        woken = _woken(rng, preferred[[domains[request] for request, _ in own]])
        awake = float((_counts(woken) > 0).sum(1).mean())
        if len(own) == _BATCH and sent > number // 2:  # what was routed before anything was measured has gone
            distinct.append(awake)
        end_s = now_s + _STEP_S + _EXPERT_S * awake
        for one in own:
            one[1] -= 1
        latencies += [end_s - came[request] for request, left in own if not left]
        running[replica] = [one for one in own if one[1]]
        heapq.heappush(clock, (end_s, replica))
    return {
        "distinct": float(np.mean(distinct)) if distinct else None,
        "answers_per_s": number / now_s,
        "p99_s": float(np.quantile(latencies, 0.99)),
        "s_measured": affinity.separability,
        "saving_predicted": affinity.saving,
        "is_on": affinity.is_on,
        "alike": affinity.num_alike / max(1, affinity.num_routed),
    }


def _woken(rng: np.random.Generator, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Experts of each token (tokens, layers, chosen)."""
    return np.argpartition(-(logits + rng.gumbel(size=logits.shape)), _CHOSEN, axis=-1)[..., :_CHOSEN]


def _counts(woken: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.stack([np.bincount(woken[:, layer].ravel(), minlength=_EXPERTS) for layer in range(_LAYERS)])


def _hot(honest: float, flood: float, quick: bool, seed: int) -> dict[str, Any]:
    number = 250 if quick else 600
    even, piled = (
        trace(inputs, honest=honest, flood=flood, num_units=number, seed=seed) for inputs in ("spread", "piled")
    )
    return {
        "seed": seed,
        "even_s": p99_s(replay(even, is_guarded=True)),
        "unguarded_s": p99_s(replay(piled, is_guarded=False)),
        "guarded_s": p99_s(replay(piled, is_guarded=True)),
    }


def lines(part: dict[str, Any]) -> list[str]:
    """Two tables."""
    seeds, hot_seeds = (len(part[name][0]["seeds"]) for name in ("affinity", "hot"))
    rows = [
        "Affinity against least work, 4 domains, 4 replicas kept full, 128 experts, 8 a token, batch 16 (simulated, "
        f"mean of {seeds} seeds, in brackets the least saving):",
        "",
        "| s | s measured | affinity on | distinct experts a layer | answers/s | p99 |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in part["affinity"]:
        sides = row["seeds"]
        measured, on = (mean(side["affinity"][name] for side in sides) for name in ("s_measured", "is_on"))
        distinct, answers, p99 = (_changes(sides, name) for name in ("distinct", "answers_per_s", "p99_s"))
        shown = f"{mean(distinct):+.1%} ({max(distinct):+.1%})" if distinct else "-"
        rows.append(f"| {row['s']:g} | {measured:.2f} | {on:.0%} | {shown} | {mean(answers):+.1%} | {mean(p99):+.1%} |")
    rows += [
        "",
        "p99 of honest tenants as a multiple of the same load's with inputs spread, by what they and the attacker ask "
        f"for (of the capacity), simulated; mean of {hot_seeds} seeds, in brackets the worst:",
        "",
        "| honest | attacker | spread, s | piled up, no guard | piled up, guard | seeds over 1.3x |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in part["hot"]:
        without, guarded = (
            [one[name] / one["even_s"] for one in row["seeds"]] for name in ("unguarded_s", "guarded_s")
        )
        rows.append(
            f"| {row['honest']} | {row['flood']} | {mean(one['even_s'] for one in row['seeds']):.1f} | "
            f"{mean(without):.1f}x ({max(without):.1f}x) | {mean(guarded):.2f}x ({max(guarded):.2f}x) | "
            f"{sum(ratio > 1.3 for ratio in guarded)} of {hot_seeds} |"
        )
    return rows


def _changes(sides: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Of affinity against least work, by seed; without those that did not measure it."""
    pairs = [(side["affinity"][name], side["least_work"][name]) for side in sides]
    return [one / other - 1.0 for one, other in pairs if one and other]
