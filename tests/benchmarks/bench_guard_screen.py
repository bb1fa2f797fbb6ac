"""What the pre-screen sees, how often it is wrong about benign pictures of each kind, and what it takes.

    make bench-guard-screen                                      # with what `make bench-attacks` has left
    python -m tests.benchmarks.bench_guard_screen --runs out/screen --runs out/adversarial

Pictures of attacks are those below ``--runs`` of which the head has not seen the pictures: other seeds than those that
it was trained on for the attacks that it knows, any for the others. Below 1% with any kind of benign picture is what
counts (``serving.guard.screen``). *In disguise*, they come as JPEG or scaled, and nobody measured what is left of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loadtest.adversarial.figures import share
from models.families.texthawk2.image_processor import cut_tiles
from serving.guard.fingerprints import Fingerprints
from serving.guard.screen import ImageScreen, read_head, shipped_screen
from tests.benchmarks.common import ROOT, markdown_table, out_dir, parser_of, provenance, write_results
from tests.benchmarks.guard.attack_pictures import Attacked, Pixels, attacked
from tests.benchmarks.guard.screen_pictures import KINDS, LIMITS, jpeg, pictures

RUNS = ROOT / "out" / "adversarial"
LEVELS = (0.01, 0.05)
DISGUISES: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda picture: picture,
    "JPEG 90": lambda picture: jpeg(picture, 90),
    "JPEG 75": lambda picture: jpeg(picture, 75),
    "twice as large": lambda picture: np.asarray(Image.fromarray(picture).resize((448, 448)), np.uint8),
}
_BUCKETS: tuple[tuple[float, float | None], ...] = ((0.0, 2.0), (2.0, 6.0), (6.0, None))
"""Of tokens over those of the clean picture; the last one is open."""
_SECRET = b"benchmark" * 4


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--runs", type=Path, action="append", help="a folder of attacks (repeatable); default out/adversarial"
    )
    args = parser.parse_args()
    document = {**provenance("guard-screen"), **measured(args.runs or [RUNS], 40 if args.quick else 500)}
    write_results(out_dir(args), document, described(document))
    print(described(document))


def measured(runs: Sequence[Path], count: int) -> dict[str, Any]:
    """``count``: benign pictures of each kind."""
    screen = shipped_screen(_SECRET)
    return {
        "head": read_head().provenance,
        "benign": benign_table(screen, count),
        "attacks": attack_table(screen, runs),
        "milliseconds": costs(screen, max(40, count)),
    }


def benign_table(screen: ImageScreen, count: int) -> dict[str, Any]:
    """How often each kind is found strange."""
    found = {kind: [screen.p_value(one) for one in pictures("evaluation", kind, count)] for kind in KINDS}
    return {kind: _shares(p_values) for kind, p_values in found.items()}


def attack_table(screen: ImageScreen, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """How often attacks are, by model, attack and disguise, then by what they do to an answer."""
    known = screen.head.provenance
    is_new = [
        one for one in attacked(runs) if one.attack not in known["attacks"] or one.seed not in known["seeds_of_attacks"]
    ]
    rows = []
    for model, attack in sorted({(one.model, one.attack) for one in is_new}):
        of = [one for one in is_new if (one.model, one.attack) == (model, attack)]
        facts = {"model": model, "attack": attack, "is_known": attack in known["attacks"]}
        rows += [{**facts, "disguise": name, **_judged(screen, of, change)} for name, change in DISGUISES.items()]
        for low, high in _BUCKETS:
            if within := [one for one in of if low <= one.amplification < (high or np.inf)]:
                rows.append({**facts, "amplification": [low, high], **_judged(screen, within, DISGUISES["as it is"])})
    return rows


def _judged(screen: ImageScreen, of: Sequence[Attacked], change: Callable[[Pixels], Pixels]) -> dict[str, Any]:
    return _shares([screen.p_value(cut_tiles(change(one.pixels), LIMITS)[0]) for one in of])


def _shares(p_values: Sequence[float]) -> dict[str, Any]:
    found = {f"at {level:g}": share([p <= level for p in p_values]) for level in LEVELS}
    return {"num": len(p_values), **found}


def costs(screen: ImageScreen, count: int) -> dict[str, Any]:
    """CPU time of one look, fingerprint included, by tiles."""
    fingerprints, rng = Fingerprints(_SECRET), np.random.default_rng(0)
    found = {}
    for tiles in (1, 5, 13):
        picture = rng.integers(0, 256, (tiles, 224, 224, 3), np.uint8)
        taken = [_taken_ms(screen, fingerprints, picture) for _ in range(count)]
        found[str(tiles)] = {"median": float(np.median(taken)), "p99": float(np.quantile(taken, 0.99)), "num": count}
    return found


def _taken_ms(screen: ImageScreen, fingerprints: Fingerprints, picture: Pixels) -> float:
    began_s = time.thread_time()
    screen.p_value(picture)
    fingerprints.of(picture)
    return 1e3 * (time.thread_time() - began_s)


def described(document: dict[str, Any]) -> str:
    """Tables for people."""
    benign = [[kind, row["num"], *_cells(row)] for kind, row in document["benign"].items()]
    attacks = [
        [
            f"{row['model']}, {row['attack']}" + ("" if row["is_known"] else " *"),
            row.get("disguise") or _times(*row["amplification"]),
            row["num"],
            *_cells(row),
        ]
        for row in document["attacks"]
    ]
    spent = [[tiles, f"{its['median']:.1f}", f"{its['p99']:.1f}"] for tiles, its in document["milliseconds"].items()]
    return "\n\n".join(
        [
            "Benign pictures that are found strange:",
            markdown_table(("kind", "pictures", "p <= 1%", "p <= 5%"), benign),
            "Attacks that are (*: of which the head never saw one):" if attacks else "No attack is here to be judged.",
            *([markdown_table(("attack", "", "pictures", "p <= 1%", "p <= 5%"), attacks)] if attacks else []),
            "CPU time of a look with its fingerprint, ms:",
            markdown_table(("tiles", "median", "p99"), spent),
        ]
    )


def _times(low: float, high: float | None) -> str:
    return f"{low:g} times as long or longer" if high is None else f"{low:g} to {high:g} times as long"


def _cells(row: dict[str, Any]) -> list[str]:
    return ["{value:.1%} ({low:.1%} to {high:.1%})".format(**row[f"at {level:g}"]) for level in LEVELS]


if __name__ == "__main__":
    main()
