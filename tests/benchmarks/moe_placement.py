"""Part of bench-moe: placing experts on ranks, and waking few of them.

Placing: processor time of EPLB for 58 layers of 256 experts, 320 slots and 64 ranks, and how many slots get another
expert when the load has moved by a few percent. Awake: experts of the rank that reads most, with tokens dealt to
replicas in turn and with each expert on one rank, at 128 experts, 8 of them a token, 8 ranks and 160 slots by EPLB.
Simulated: whole systems at 256 experts on 64 ranks (``schedulers.lab.experts``). Nano: how dit-moe-nano really routes,
dealt to 4 ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

from models.families.dit_moe.config import NANO
from models.families.dit_moe.network import DitMoe, Gated
from schedulers.experts.activation import choose, num_awake
from schedulers.experts.eplb import eplb
from schedulers.experts.loads import balancedness
from schedulers.experts.placement import Placement, in_order
from schedulers.lab.experts import Popularity, Ranks, System, Traffic, routed, simulate
from tests.benchmarks.common import ROOT, markdown_table

_LAYERS, _EXPERTS, _SLOTS, _RANKS, _NODES = 58, 256, 320, 64, 8
_ZIPF, _BATCHES = (0.5, 0.75, 1.0), (8, 16, 32, 64, 128)
_TRAFFIC = {
    "skewed": Traffic(),
    "drifting": Traffic(drift_steps=500),
    "cursed": Traffic(cursed=0.3),
}
_TOKENS = {"few": 64, "many": 4096}


def measure(*, quick: bool) -> dict[str, Any]:
    """All four."""
    return {
        "placing": [_placing(groups, 3 if quick else 9) for groups in (1, _NODES)],
        "awake": [_awake(exponent, batch, 4 if quick else 60) for exponent in _ZIPF for batch in _BATCHES],
        "simulated": _simulated(200 if quick else 1000),
        "nano": _nano(4 if quick else 60, 4 if quick else 20),
    }


# -- placing ---------------------------------------------------------------------------------------------------------


def _placing(groups: int, repeats: int) -> dict[str, Any]:
    rng = Random(0)
    counts = [[int(1e5 * weight) for weight in Popularity.zipf(_EXPERTS, 0.8, rng).weights] for _ in range(_LAYERS)]
    later = [[int(count * rng.uniform(0.95, 1.05)) for count in row] for row in counts]

    def place(rows: list[list[int]], current: Placement | None) -> Placement:
        return eplb(rows, _SLOTS, _RANKS, num_groups=groups, num_nodes=groups, current=current)

    before = place(counts, None)
    after, anew = place(later, before), place(later, None)
    return {
        "kind": "hierarchical" if groups > 1 else "global",
        "anew_ms": _cpu_ms(lambda: place(later, None), repeats),
        "from_current_ms": _cpu_ms(lambda: place(later, before), repeats),
        "slots": _LAYERS * _SLOTS,
        "moves_anew": len(before.moves_to(anew)),
        "moves_from_current": len(before.moves_to(after)),
        "balancedness_before": round(balancedness(_rank_loads(before, later)), 4),
        "balancedness_after": round(balancedness(_rank_loads(after, later)), 4),
    }


def _cpu_ms(work: Callable[[], object], repeats: int) -> float:
    times_ns = []
    for _ in range(repeats):
        begin_ns = time.thread_time_ns()
        work()
        times_ns.append(time.thread_time_ns() - begin_ns)
    return round(median(times_ns) / 1e6, 1)


def _rank_loads(placement: Placement, counts: list[list[int]]) -> list[list[float]]:
    return [placement.rank_loads(layer, row) for layer, row in enumerate(counts)]


# -- awake -----------------------------------------------------------------------------------------------------------


def _awake(exponent: float, batch: int, draws: int) -> dict[str, Any]:
    rng = Random(f"{exponent}/{batch}")
    turns = ours = bound = 0
    times_ns = []
    for draw in range(draws):
        if draw % 10 == 0:
            popularity = Popularity.zipf(128, exponent, rng)
            placement = eplb([routed(popularity, 2048, 8, rng)], 160, 8)
            choose(placement.slots[0], [0] * 128, 8)  # what is kept of a layer
        tokens = routed(popularity, batch, 8, rng)
        turns += max(num_awake(placement.replicas[0], tokens, 8, 160))
        begin_ns = time.thread_time_ns()
        chosen = choose(placement.slots[0], tokens, 8)
        times_ns.append(time.thread_time_ns() - begin_ns)
        ours += max(num_awake(chosen, tokens, 8, 160))
        bound += -(-sum(map(bool, tokens)) // 8)
    return {
        "zipf": exponent,
        "batch": batch,
        "in_turns": round(turns / draws, 2),
        "fewest_awake": round(ours / draws, 2),
        "lower_bound": round(bound / draws, 2),
        "less_percent": round(100 * (1 - ours / turns), 1),
        "over_bound_percent": round(100 * (ours / bound - 1), 1),
        "choice_us": round(median(times_ns) / 1e3, 1),
    }


# -- simulated -------------------------------------------------------------------------------------------------------


def _simulated(num_steps: int) -> list[dict[str, Any]]:
    ranks, period = Ranks(), num_steps // 10
    systems = [
        System(name="in order, in turns", balancing="none", choose=ranks.in_turns, period=period),
        System(name="global, in turns", balancing="global", choose=ranks.in_turns, period=period),
        System(name="global, fewest awake", balancing="global", choose=ranks.fewest_awake, period=period),
        System(name="hierarchical, in turns", balancing="hierarchical", choose=ranks.in_turns, period=period),
        System(name="hierarchical, fewest awake", balancing="hierarchical", choose=ranks.fewest_awake, period=period),
    ]
    rows = []
    for name, traffic in _TRAFFIC.items():
        for size, tokens in _TOKENS.items():
            trace = replace(traffic, tokens_per_step=tokens).steps(num_steps)
            for system in systems:
                outcome = simulate(system, ranks, trace, warm_up=3 * period)
                row = {"traffic": name, "tokens": size, "tokens_per_step": tokens, "system": system.name}
                rows.append({**row, **asdict(outcome), "steps": num_steps, "layers": traffic.num_layers})
    return rows


# -- the nano model --------------------------------------------------------------------------------------------------


def _nano(num_pictures: int, num_steps: int) -> dict[str, Any]:
    """Tokens of each half of the steps, of half the pictures to place by and of the other half to judge by."""
    config = NANO
    network = DitMoe(config).eval()
    network.load_state_dict(load_file(_weights()))
    halves = [_routed_by_nano(network, num_pictures // 2, num_steps, seed) for seed in (0, 1)]
    found: dict[str, Any] = {"pictures": num_pictures, "steps": num_steps, "ranks": 4, "slots": 12}
    for phase in ("early", "late"):
        plan, judge = (half[phase] for half in halves)
        placements = {
            "in_order": in_order(config.depth, config.num_experts, 4, 8),
            "spare_in_order": in_order(config.depth, config.num_experts, 4, 12),
            "eplb": eplb(plan, 12, 4),
        }
        found[phase] = {name: round(balancedness(_rank_loads(p, judge)), 4) for name, p in placements.items()}
    return found


def _weights() -> Path:
    return ROOT / "models/checkpoints/dit-moe-nano/model.safetensors"


@torch.inference_mode()
def _routed_by_nano(network: DitMoe, num_pictures: int, num_steps: int, seed: int) -> dict[str, list[list[int]]]:
    config, random = network.config, torch.Generator().manual_seed(seed)
    side = config.latent_side
    latents = torch.randn(num_pictures, config.latent_channels, side, side, generator=random)
    classes = torch.randint(config.num_classes, (num_pictures,), generator=random)
    counts = {phase: torch.zeros(config.depth, config.num_experts, dtype=torch.long) for phase in ("early", "late")}
    for step in range(num_steps, 0, -1):
        gated: list[Gated] = []
        times = torch.full((num_pictures,), step / num_steps)
        latents = latents - network(latents, times, classes, gated=gated) / num_steps
        of_phase = counts["early" if 2 * step > num_steps else "late"]
        for layer, one in enumerate(gated):
            of_phase[layer] += torch.bincount(one.ids.flatten(), minlength=config.num_experts)
    return {phase: one.tolist() for phase, one in counts.items()}


# -- for readers -----------------------------------------------------------------------------------------------------


def lines(document: dict[str, Any]) -> list[str]:
    """Four tables."""
    placing = [
        [row[key] for key in ("kind", "anew_ms", "from_current_ms", "moves_anew", "moves_from_current")]
        for row in document["placing"]
    ]
    columns = ("in_turns", "fewest_awake", "lower_bound", "less_percent", "over_bound_percent", "choice_us")
    awake = [
        [f"Zipf {row['zipf']}, batch {row['batch']}", *(row[column] for column in columns)] for row in document["awake"]
    ]
    simulated = [
        [
            f"{row['traffic']}, {row['tokens_per_step']} tokens",
            row["system"],
            round(row["imbalance"], 2),
            round(row["awake"], 2),
            round(row["layer_us"], 1),
            row["moves"],
            round(row["copied_bytes"] / 1e9, 1),
        ]
        for row in document["simulated"]
    ]
    nano = document["nano"]
    kinds = ("in_order", "spare_in_order", "eplb")
    return [
        f"EPLB for {_LAYERS} layers, {_EXPERTS} experts, {_SLOTS} slots, {_RANKS} ranks; slots that get another expert "
        f"when every load moves by up to 5%, of {document['placing'][0]['slots']}.",
        "",
        markdown_table(["kind", "anew, ms", "from current, ms", "moves, anew", "moves, from current"], placing),
        "",
        "Awake experts of the rank that reads most; 128 experts, 8 a token, 8 ranks, 160 slots.",
        "",
        markdown_table(
            ["traffic", "in turns", "fewest", "lower bound", "less, %", "over the bound, %", "choice, us"], awake
        ),
        "",
        "Simulated, 256 experts on 64 ranks with 320 slots: load of the fullest rank over the mean, awake experts of "
        "the rank that reads most, time of a layer; slots that got another expert in all steps.",
        "",
        markdown_table(["traffic", "system", "fullest / mean", "awake", "layer, us", "moves", "copied, GB"], simulated),
        "",
        f"dit-moe-nano on {nano['ranks']} ranks, balancedness by half of the steps.",
        "",
        markdown_table(
            ["steps", "8 slots, in order", "12 slots, in order", "12 slots, EPLB"],
            [[phase, *(nano[phase][kind] for kind in kinds)] for phase in ("early", "late")],
        ),
    ]
