"""The guard as a weapon: does an attacker get *others* flagged?

A tenant perturbs pictures that everybody sends, is caught with them, and they go into quarantine. Then others, and that
tenant, send the originals, and pictures of their own. A real Redis keeps the quarantine. What else an attacker could do
to other people's pictures, noise for instance, is in the tables of what is found (attacks ``noise``).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from loadtest.adversarial.figures import share
from loadtest.adversarial.pictures import cases
from loadtest.adversarial.runs import Record, read_record
from loadtest.adversarial.victim import Pictures, Victim, load_victim
from serving.guard.fingerprints import Fingerprints
from serving.guard.store import Quarantine
from serving.stores.connection import RedisConfig
from tests.benchmarks.guard.corpus import items
from tests.benchmarks.guard.traces import cut
from tests.support.redis_server import embedded_redis

MODEL = "texthawk2-nano"
_SECRET = hashlib.sha256(b"bench-guard").digest()
_CHECKPOINT = "0" * 64
_MOST, _OTHERS = 100, 300
_OF_A_TASK = 32
"""Pictures of a prompt class among which an original is looked for."""


class _Pair(NamedTuple):
    caught: Pictures
    original: Pictures


def measure(args: argparse.Namespace, _: Mapping[str, Any]) -> dict[str, Any]:
    """Rates with which who is taken for a replay."""
    victim = load_victim(MODEL)
    pairs = _pairs(args.attacks, victim)[: 8 if args.quick else _MOST]
    others = [
        tiles
        for item in items(MODEL, "evaluation", range(16 if args.quick else _OTHERS))
        for tiles, _ in cut(item, victim)[:1]
    ]
    known = asyncio.run(_looked(pairs, others)) if pairs else {}
    header = ["who sends what", "pictures", "taken for a replay"]
    cells: list[list[object]] = [
        [what, len(hits), "{value:.1%} ({low:.1%} to {high:.1%})".format(**share(hits))] for what, hits in known.items()
    ]
    title = f"**Quarantine**: after one tenant was caught with {len(pairs)} crafted pictures"
    return {"tables": [{"title": title, "header": header, "cells": cells}] if cells else []}


def _pairs(runs: Path, victim: Victim) -> list[_Pair]:
    """Crafted pictures with what they were made of: the picture of the same prompt class that differs by the bound."""
    originals: dict[tuple[str, int], list[Pictures]] = {}
    found = []
    for path in sorted(runs.rglob(f"{MODEL}/*/[0-9]*.json")):
        try:
            record: Record = read_record(path)
        except (TypeError, ValueError, KeyError):
            continue  # written before records held ids
        if record.amplification < 2.0 or record.largest_change > 16:
            continue
        key = (record.task, record.seed)
        if key not in originals:
            drawn = cases(record.task, _OF_A_TASK, seed=record.seed, limits=victim.limits)
            originals[key] = [case.picture for case in drawn]
        caught = np.asarray(Image.open(path.with_suffix(".png")).convert("RGB"))
        near = [one for one in originals[key] if _difference(one, caught) <= record.largest_change]
        found += [_Pair(caught, one) for one in near[:1]]
    return found


def _difference(one: Pictures, other: Pictures) -> int:
    return int(np.abs(one.astype(np.int16) - other).max()) if one.shape == other.shape else 255


async def _looked(pairs: Sequence[_Pair], others: Sequence[Pictures]) -> dict[str, list[bool]]:
    fingerprints = Fingerprints(_SECRET)

    def mark(pixels: Pictures) -> tuple[bytes, bytes]:
        return hashlib.sha256(pixels.tobytes()).digest(), fingerprints.of(pixels)

    with embedded_redis() as server:
        quarantine = Quarantine(RedisConfig(url=server.url, timeout_s=5.0), _SECRET)
        try:
            for pair in pairs:
                await quarantine.put(
                    "attacker",
                    *mark(pair.caught),
                    model=MODEL,
                    checkpoint=_CHECKPOINT,
                    score=1.0,
                    reasons=("eos",),
                    num_tokens=100,
                )

            async def hits(tenant: str, pictures: Sequence[Pictures]) -> list[bool]:
                return [(await quarantine.look(tenant, *mark(one), _CHECKPOINT)).is_replay for one in pictures]

            rng = np.random.default_rng(0)
            changed = [
                np.clip(one.caught.astype(np.int16) + rng.integers(-2, 3, one.caught.shape), 0, 255).astype(np.uint8)
                for one in pairs
            ]
            return {
                "others: the originals": await hits("others", [one.original for one in pairs]),
                "others: pictures of their own": await hits("others", others),
                "others: the crafted pictures, exactly": await hits("others", [one.caught for one in pairs]),
                "the attacker: the crafted pictures, exactly": await hits("attacker", [one.caught for one in pairs]),
                "the attacker: the same, changed by 2 grey levels": await hits("attacker", changed),
                "the attacker: the originals": await hits("attacker", [one.original for one in pairs]),
                "the attacker: other pictures": await hits("attacker", others),
            }
        finally:
            await quarantine.stop()
