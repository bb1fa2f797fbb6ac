"""What the guard finds, what it costs, and what attacks still cost it.

    make bench-guard                                             # offline, from recorded answers: minutes
    python -m tests.benchmarks.bench_guard --attacks FOLDER      # attacked pictures of other runs than out/adversarial
    python -m tests.benchmarks.bench_guard --only neighbours     # served, on a quiet machine: five minutes
    python -m tests.benchmarks.bench_guard --only overhead       # the same: five minutes

Benign answers come of ``tests.benchmarks.guard.traces`` (part *evaluation*; the ``guard.json`` beside the weights was
made of part *calibration*), attacked ones of ``make bench-attacks``. Each is sent through the served guard again, token
by token (``tests.benchmarks.guard.replay``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from loadtest.adversarial.victim import load_victim
from models.registry import find
from serving.guard.calibrated import read_calibration
from tests.benchmarks.common import ROOT, out_dir, parser_of, print_table, provenance, write_results
from tests.benchmarks.guard import dos, served, shown
from tests.benchmarks.guard.corpus import MODELS
from tests.benchmarks.guard.evidence import (
    Kept,
    Subject,
    ask_again,
    attacked_subjects,
    benign_subjects,
    evidence_file,
    screen,
    squeeze,
)
from tests.benchmarks.guard.figures import measured
from tests.benchmarks.guard.judged import Judged, judge
from tests.benchmarks.guard.traces import OUT, make

Part: TypeAlias = Callable[[argparse.Namespace, Mapping[str, Any]], dict[str, Any]]
"""What takes the options and what it said last time, and says what it measured."""


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="this part anew (may be repeated)")
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated; default: all")
    parser.add_argument("--attacks", type=Path, default=ROOT / "out" / "adversarial", help="runs with records")
    parser.add_argument("--benign", type=int, default=1280, help="benign answers of each model; made where missing")
    parser.add_argument("--hard", type=int, default=200, help="hard ones beside")
    parser.add_argument("--squeezed", type=int, default=600, help="benign pictures whose embedding is squeezed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = out_dir(args)
    before = folder / "guard.json"
    document = json.loads(before.read_text()) if args.only and before.is_file() else {}
    for name in args.only or _USUAL:
        document[name] = PARTS[name](args, document.get(name, {}))
    document = {**document, **provenance("guard")}
    tables = list(shown.tables(document))
    for title, header, cells in tables:
        print(f"\n{title}")
        print_table(header, cells)
    write_results(folder, document, shown.markdown(tables, picture=shown.draw(document, folder)))


def offline(args: argparse.Namespace, before: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that recorded answers can show; of other models as it was, with what it was measured by.

    Models of which that is not known are left out.
    """
    kept = {name: part for name, part in before.items() if name in MODELS and "of" in part}
    return {**kept, **{model: {**_model(args, model), "of": provenance("guard")} for model in args.model or MODELS}}


def _model(args: argparse.Namespace, model: str) -> dict[str, Any]:
    victim, folder = load_victim(model), find(model)[1].weights
    assert folder is not None, "the victim was loaded from it"
    calibration = read_calibration(folder)
    if calibration is None:
        raise SystemExit(f"{model} has no guard.json; python -m tests.benchmarks.guard.calibrate --model {model}")
    traces = make(model, "evaluation", *((64, 0) if args.quick else (args.benign, args.hard)))
    benign = benign_subjects(traces, model, "evaluation", victim)
    attacked = attacked_subjects(args.attacks, model, victim)[: 8 if args.quick else None]
    kept = Kept(OUT / model / evidence_file(victim.weights))
    screen([*benign, *attacked], kept)
    squeeze(attacked, kept, victim)

    def judged() -> list[Judged]:
        return [judge(one, kept[one.key], calibration) for one in (*benign, *attacked)]

    # Who is looked at more closely depends on what was seen before: three times over.
    squeeze([one.subject for one in judged() if one.outcome.is_glanced], kept, victim)
    squeeze(benign[: 16 if args.quick else args.squeezed], kept, victim)
    suspects: list[tuple[Subject, int]] = [
        (one.subject, one.outcome.expected.cap_tokens) for one in judged() if one.outcome.suspect_at is not None
    ]
    ask_again(suspects, kept, victim)
    return measured(judged(), calibration, decode=victim.prompts.decode)


def _whole(measure: Part) -> Part:
    """A part that is measured at once, with what it was measured by."""
    return lambda args, before: {**measure(args, before), "of": provenance("guard")}


PARTS: dict[str, Part] = {
    "offline": offline,
    "dos": _whole(dos.measure),
    "neighbours": _whole(served.neighbours),
    "overhead": _whole(served.overhead),
}
_USUAL = ("offline", "dos")


if __name__ == "__main__":
    main()
