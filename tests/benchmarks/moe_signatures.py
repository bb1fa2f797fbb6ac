"""Part of bench-moe: requests routed by what they wake, beside least work; and the guard against hot experts.

Simulated, as no mixture of experts that chats is served yet: four replicas decode answers of four domains at 128
experts, 8 a token. A domain prefers other experts by s logits; a step reads each distinct expert once, and takes longer
for each. Signatures are those of 48 prompt tokens. Both sides get the same requests. Then
``schedulers.lab.hot_experts``.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from schedulers.experts.affinity import Affinity
from schedulers.experts.signature import prompt_shares, sketch_of
from schedulers.lab.hot_experts import p99_s, replay, trace
from schedulers.routing import ReplicaLoad, rank

_REPLICAS, _DOMAINS, _EXPERTS, _CHOSEN, _LAYERS, _BATCH = 4, 4, 128, 8, 3, 16
_STEP_S, _EXPERT_S, _PROMPT, _WAIT = 0.002, 0.0002, 48, 8


def measure(*, quick: bool) -> dict[str, Any]:
    """Both."""
    number = 300 if quick else 600
    separable = [
        {"s": s, **{side: _serve(s, side == "affinity", number) for side in ("least_work", "affinity")}}
        for s in (0.25, 0.5, 1.0, 1.5, 2.0)
    ]
    return {"affinity": separable, "hot": [_hot(honest, flood, quick) for honest, flood in ((0.4, 0.2), (0.5, 0.5))]}


def _serve(s: float, by_signature: bool, number: int) -> dict[str, Any]:
    """Replicas kept full, with a few waiting at each: a request comes for each that is answered."""
    rng = np.random.default_rng(0)
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


def _hot(honest: float, flood: float, quick: bool) -> dict[str, Any]:
    number = 250 if quick else 600
    even, piled = (trace(inputs, honest=honest, flood=flood, num_units=number) for inputs in ("spread", "piled"))
    return {
        "honest": honest,
        "flood": flood,
        "even_s": p99_s(replay(even, is_guarded=True)),
        "unguarded_s": p99_s(replay(piled, is_guarded=False)),
        "guarded_s": p99_s(replay(piled, is_guarded=True)),
    }


def lines(part: dict[str, Any]) -> list[str]:
    """Two tables."""
    rows = [
        "Affinity against least work, 4 domains, 4 replicas kept full, 128 experts, 8 a token, batch 16 (simulated):",
        "",
        "| s | s measured | affinity | distinct experts a layer | answers/s | p99 |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for row in part["affinity"]:
        least, alike = row["least_work"], row["affinity"]
        changes = [
            f"{100 * (alike[name] / least[name] - 1):+.1f}%" if alike[name] and least[name] else "-"
            for name in ("distinct", "answers_per_s", "p99_s")
        ]
        state = "on" if alike["is_on"] else "off"
        rows.append(f"| {row['s']:g} | {alike['s_measured']:.2f} | {state} | {' | '.join(changes)} |")
    rows += [
        "",
        "p99 of honest tenants, by what they and the attacker ask for (of the capacity), in seconds (simulated):",
        "",
        "| honest | attacker | inputs spread | piled up, no guard | piled up, guard |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in part["hot"]:
        without, guarded = row["unguarded_s"] / row["even_s"], row["guarded_s"] / row["even_s"]
        rows.append(
            f"| {row['honest']} | {row['flood']} | {row['even_s']:.1f} | {row['unguarded_s']:.1f} ({without:.1f}x) | "
            f"{row['guarded_s']:.1f} ({guarded:.2f}x) |"
        )
    return rows
