"""Train and calibrate the head of the pre-screen (``serving/guard/screen_head.json``).

    python -m loadtest.adversarial images --attack delayed-eos --tasks word,caption,ground_shape --pictures 6 \\
        --iterations 24 --every 12 --cap 256 --seed 9 --out out/screen        # and --attack verbose-released
    python -m tests.benchmarks.guard.train_screen --runs out/screen

It learns from two attacks alone: who judges it has the others. Of what an attack added, most is seen on other pictures
(``transplanted``), so that it is the addition that is learned and not what was drawn below. Benign pictures of training
and of calibration have seeds, and photographs, of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.progress import track

from serving.guard.features import NAMES, features
from serving.guard.screen import FILE, FORMAT, HeadFile, expanded
from tests.benchmarks.common import commit
from tests.benchmarks.guard.attack_pictures import Attacked, attacked, transplanted
from tests.benchmarks.guard.screen_pictures import KINDS, Part, pictures

Floats = npt.NDArray[np.float64]
TRAINED_ON = ("delayed-eos", "verbose-released")
SEED = 5
PENALTY = 1e-3
"""Of squared weights, over the mean loss."""
_STEPS = 40


def benign(part: Part, count: int) -> dict[str, Floats]:
    """Features of so many pictures of each kind."""
    return {kind: _rows(pictures(part, kind, count), f"{part}, {kind}", count) for kind in KINDS}


def _rows(found: Any, what: str, count: int) -> Floats:
    return np.stack([features(one) for one in track(found, what, count)]).astype(np.float64)


def crafted(of: Sequence[Attacked], count: int, seed: int) -> Floats:
    """Features of attacked pictures and of ``count`` transplants for each attack."""
    rng, rows = np.random.default_rng(SEED), [features(one.pixels) for one in of]
    for attack in sorted({one.attack for one in of}):
        added = [change for one in of if one.attack == attack and (change := one.added(seed)) is not None]
        rows += [features(one) for one in track(transplanted(rng, added, count), attack, count)]
    return np.stack(rows).astype(np.float64)


def fitted(terms: Floats, is_crafted: npt.NDArray[np.bool_], penalty: float = PENALTY) -> tuple[Floats, float]:
    """Weights and bias of a logistic regression in which both classes count alike: Newton's method."""
    ones = np.concatenate([terms, np.ones((len(terms), 1))], axis=1)
    labels = is_crafted.astype(np.float64)
    share = np.where(is_crafted, 0.5 / is_crafted.sum(), 0.5 / (~is_crafted).sum())
    ridge = np.full(ones.shape[1], penalty)
    ridge[-1] = 0.0
    found = np.zeros(ones.shape[1])
    for _ in range(_STEPS):
        odds = 1.0 / (1.0 + np.exp(-np.clip(ones @ found, -30, 30)))
        slope = ones.T @ (share * (odds - labels)) + ridge * found
        curve = (ones * (share * np.maximum(odds * (1 - odds), 1e-6))[:, None]).T @ ones + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        found -= step * min(1.0, 2.0 / np.abs(step).max())
        if np.abs(step).max() < 1e-6:
            break
    return found[:-1], float(found[-1])


def trained(of: Sequence[Attacked], count: int, seed: int, provenance: dict[str, Any], penalty: float) -> HeadFile:
    """A head, calibrated. ``count``: benign pictures of each kind, and half of an attack's transplants. ``seed``: that
    the attacks were run with."""
    ordinary, strange = np.concatenate(list(benign("training", count).values())), crafted(of, 2 * count, seed)
    everything = np.concatenate([ordinary, strange])
    mean, scale = everything.mean(0), everything.std(0) + 1e-3
    is_crafted = np.arange(len(everything)) >= len(ordinary)
    weights, bias = fitted(expanded(everything, mean, scale), is_crafted, penalty)
    scores = {
        kind: np.sort(expanded(rows, mean, scale) @ weights + bias)
        for kind, rows in benign("calibration", count).items()
    }
    return HeadFile(
        format=FORMAT,
        features=NAMES,
        mean=_short(mean),
        scale=_short(scale),
        weights=_short(weights),
        bias=round(bias, 5),
        benign={kind: _short(its) for kind, its in scores.items()},
        provenance={**provenance, "benign_of_each_kind": count, "attacked": len(of), "transplants": 2 * count},
    )


def _short(values: Floats) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, action="append", required=True, help="a folder of attacks (repeatable)")
    parser.add_argument("--count", type=int, default=500, help="benign pictures of each kind")
    parser.add_argument("--seed", type=int, default=9, help="that the attacks were run with")
    parser.add_argument("--penalty", type=float, default=PENALTY)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    of = [one for one in attacked(args.runs) if one.attack in TRAINED_ON]
    if {one.attack for one in of} != set(TRAINED_ON):
        parser.error(f"need pictures of {' and '.join(TRAINED_ON)} below {', '.join(map(str, args.runs))}")
    provenance = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join(["python -m tests.benchmarks.guard.train_screen", *sys.argv[1:]]),
        "attacks": {attack: sum(one.attack == attack for one in of) for attack in TRAINED_ON},
        "seeds_of_attacks": sorted({one.seed for one in of}),
        "penalty": args.penalty,
    }
    head = trained(of, args.count, args.seed, provenance, args.penalty)
    args.out.write_bytes(msgspec.json.format(msgspec.json.encode(head), indent=0) + b"\n")
    print(args.out)


if __name__ == "__main__":
    main()
