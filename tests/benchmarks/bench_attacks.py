"""What attackers make of our own models when nothing guards them, and what that costs the attackers.

    make bench-attacks                                            # what is committed; hours on a busy core
    python -m tests.benchmarks.bench_attacks --only images        # a part anew, the others as they were
    python -m tests.benchmarks.bench_attacks --only images --model texthawk2-nano --pictures 4 --iterations 100

Attacks on pictures go on where they were interrupted (``out/adversarial``): the same command again finishes them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.adversarial.figures import ratio_of_means, share
from loadtest.adversarial.perturbation import EPS
from loadtest.adversarial.pictures import Case, cases
from loadtest.adversarial.recipes import BASIC, RECIPES
from loadtest.adversarial.runs import Plan, Record, run, wait_while
from loadtest.adversarial.tables import dearest_table, exits_table, experts_table
from loadtest.adversarial.victim import Victim, load_victim
from models.registry import families
from tests.benchmarks.common import (
    QUICK_RESULTS,
    ROOT,
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)

RUNS = ROOT / "out" / "adversarial"
QUICK_RUNS = QUICK_RESULTS / "adversarial"
CALLS_FILE = "calls.json"
"""In a run's folder: provenance of each call that worked on it."""
UNSHOWN = ("token_ids", "log_p_ends", "clean_token_ids", "clean_log_p_ends")
"""Of a record: in the run's folder alone, for they are long."""
TASKS = {
    "texthawk2-nano": ("word", "caption", "ground_shape"),
    "texthawk2-nano-verbose": ("verbose-caption", "verbose-description", "verbose-list"),
}
"""Prompt classes by model: of the reader, a short answer, a sentence, a box."""
WORKS = 2.0
"""Times as long, from which a picture is kept."""
CAP = 512
SEED = 1


def main() -> None:
    """Command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="this part anew (may be repeated)")
    parser.add_argument("--model", action="append", help="chat model (may be repeated; default: all that are here)")
    parser.add_argument(
        "--attack",
        action="append",
        choices=sorted(RECIPES),
        help="this attack (may be repeated; default: those that know no guard)",
    )
    parser.add_argument("--pictures", type=int, default=17, help="of each prompt class")
    parser.add_argument("--iterations", type=int, default=60, help="of attackers with weights")
    parser.add_argument("--blind-iterations", type=int, default=12, help="of attackers that only ask: eight answers")
    parser.add_argument("--pause-while", type=Path, metavar="FILE", help="wait while this file is there")
    args = parser.parse_args()
    folder = out_dir(args)
    before = folder / "attacks.json"
    document = json.loads(before.read_text()) if args.only and before.is_file() else {}
    for name in args.only or PARTS:
        document[name] = {"of": provenance("attacks"), **PARTS[name](args, document.get(name, {}))}
    document = {**document, **provenance("attacks")}
    write_results(folder, document, shown(document))


# -- pictures of chats -----------------------------------------------------------------------------------------------


def images(args: argparse.Namespace, before: Mapping[str, Any]) -> dict[str, Any]:
    """Every attack on every prompt class of every model; other models' and attacks' records stay as they were."""
    models = args.model or [model for model in TASKS if model in _known()]
    redone = [(model, attack) for model in models for attack in args.attack or BASIC]
    records = [Record(**one) for one in before.get("records", []) if (one["model"], one["attack"]) not in redone]
    calls = [one for one in before.get("calls", []) if (one["model"], one["attack"]) not in redone]
    now = provenance("attacks")
    for model in models:
        victim = load_victim(model)
        for attack in args.attack or BASIC:
            plan, chosen = _planned(args, victim, model, attack)
            folder = (QUICK_RUNS if args.quick else RUNS) / f"{plan.iterations}x{len(chosen)}" / model / attack
            done = _attacked(args, victim, plan, chosen, folder, now)
            _keep_picture(out_dir(args) / "attacks", folder, done)
            records += done
            made_by = json.loads((folder / CALLS_FILE).read_text())
            calls.append({"model": model, "attack": attack, "weights": victim.weights, "calls": made_by})
    order = {attack: place for place, attack in enumerate(RECIPES)}
    records.sort(key=lambda one: (one.model, order[one.attack], one.index))
    calls.sort(key=lambda one: (one["model"], order[one["attack"]]))
    return {"cap": CAP, "calls": calls, "records": [_plain(record) for record in records], "rows": list(rows(records))}


def _known() -> set[str]:
    return {variant.id for family in families().values() for variant in family.variants}


def _planned(args: argparse.Namespace, victim: Victim, model: str, attack: str) -> tuple[Plan, list[Case]]:
    is_blind = RECIPES[attack].score is not None
    iterations = 2 if args.quick else min(args.iterations, args.blind_iterations) if is_blind else args.iterations
    plan = Plan(model=model, attack=attack, iterations=iterations, every=10, seed=SEED, cap=CAP)
    tasks, count = (TASKS[model][:1], 2) if args.quick else (TASKS[model], args.pictures)
    return plan, [case for task in tasks for case in cases(task, count, seed=SEED, limits=victim.limits)]


def _attacked(
    args: argparse.Namespace, victim: Victim, plan: Plan, chosen: Sequence[Case], folder: Path, now: Mapping[str, Any]
) -> list[Record]:
    """Finish the run of ``folder``; what worked on it, before and now, is beside it."""
    began_s = time.monotonic()
    file, is_over = folder / CALLS_FILE, len(list(folder.glob("[0-9][0-9].json"))) == len(chosen)
    made_by = json.loads(file.read_text()) if file.is_file() else []
    if not is_over or not made_by:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([*made_by, now], indent=1) + "\n")
    done = run(plan, victim, chosen, folder, hold=lambda: wait_while(args.pause_while))
    lengths = ", ".join(f"{one.clean_length}->{one.length}" for one in done)
    print(f"{plan.model} {plan.attack}: {lengths} ({time.monotonic() - began_s:.0f} s)", flush=True)
    return done


def _plain(record: Record) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in UNSHOWN}


def rows(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """By model, attack and prompt class, then of all classes; of a shared patch, the pictures that it never saw."""
    for model in dict.fromkeys(one.model for one in records):
        for attack in RECIPES:
            of_attack = [one for one in records if (one.model, one.attack) == (model, attack)]
            unseen = [one for one in of_attack if one.is_held_out]
            counted = unseen or of_attack
            for task in [*dict.fromkeys(one.task for one in counted), "all"]:
                chosen = [one for one in counted if task in ("all", one.task)]
                if chosen:
                    paid = [one for one in of_attack if task in ("all", one.task)]
                    yield {"model": model, "attack": attack, "task": task, **_row(chosen, paid)}


def _row(chosen: Sequence[Record], paid: Sequence[Record]) -> dict[str, Any]:
    after, before = [one.length for one in chosen], [one.clean_length for one in chosen]
    return {
        "pictures": len(chosen),
        "clean_tokens": float(np.mean(before)),
        "tokens": float(np.mean(after)),
        "amplification": ratio_of_means(after, before),
        "at_cap": share([one.is_at_cap for one in chosen]),
        "energy_amplification": ratio_of_means([one.victim_j for one in chosen], [one.clean_j for one in chosen]),
        "extra_j": float(np.mean([one.victim_j - one.clean_j for one in chosen])),
        "attacker_j": sum(one.attacker_j for one in paid) / len(paid),
        "iterations": float(max(one.iterations for one in paid)),
        "purified_tokens": sum(sum(one.purified_tokens) for one in chosen)
        / max(1, sum(len(one.purified_tokens) for one in chosen)),
    }


def _keep_picture(kept: Path, folder: Path, done: Sequence[Record]) -> None:
    """Of a run that works and knows no guard, the picture whose answer grew most, of a shared patch one that it never
    saw; the others are made again by the command."""
    longest = max([one for one in done if one.is_held_out] or done, key=lambda record: record.amplification)
    mine = kept / longest.model
    mine.mkdir(parents=True, exist_ok=True)
    for task in TASKS[longest.model]:
        for old in mine.glob(f"{longest.attack}-{task}-[0-9][0-9].png"):
            old.unlink()
    recipe = RECIPES[longest.attack]
    if longest.amplification >= WORKS and not recipe.is_control and not recipe.knows_guard:
        name = f"{longest.index:02d}.png"
        shutil.copyfile(folder / name, mine / f"{longest.attack}-{longest.task}-{name}")


# -- other models ----------------------------------------------------------------------------------------------------


def exits(args: argparse.Namespace, _: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSloth-style."""
    return {"rows": exits_table("dyn-perceiver-nano", 8 if args.quick else 128, EPS, 5 if args.quick else 30)}


def experts(args: argparse.Namespace, _: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts, and prompts with seeds."""
    return experts_table("dit-moe-nano", ranks=2, seeds=1 if args.quick else 2)


def parameters(_: argparse.Namespace, __: Mapping[str, Any]) -> dict[str, Any]:
    """The dearest that is allowed."""
    return {"rows": dearest_table()}


PARTS: dict[str, Callable[[argparse.Namespace, Mapping[str, Any]], dict[str, Any]]] = {
    "images": images,
    "exits": exits,
    "experts": experts,
    "parameters": parameters,
}


# -- what is shown ---------------------------------------------------------------------------------------------------


def shown(document: Mapping[str, Any]) -> str:
    """Tables of the parts that are there; printed, too."""
    tables = [one for name, tables_of in _TABLES.items() if name in document for one in tables_of(document[name])]
    tables.append(_calls_table(document))
    texts = []
    for title, header, cells in tables:
        print(f"\n{title}")
        print_table(header, cells)
        texts.append(f"{title}\n\n{markdown_table(header, cells)}")
    return "\n\n".join(texts)


Table = tuple[str, list[str], list[list[object]]]


def _images_tables(part: Mapping[str, Any]) -> Iterator[Table]:
    header = ["attack", "prompt class", "pictures", "iterations", "tokens before", "after", "times as long"]
    header += ["at the cap", "times the joules", "attacker's J a picture", "J more an answer"]
    for model in dict.fromkeys(row["model"] for row in part["rows"]):
        weights = next(run["weights"] for run in part["calls"] if run["model"] == model)
        title = f"**{model}** ({weights[:12]}), greedy, at most {part['cap']} tokens, no guard"
        own = [row for row in part["rows"] if row["model"] == model]
        basic = [_cells(row) for row in own if not RECIPES[row["attack"]].knows_guard]
        knowing = [[*_cells(row), f"{row['purified_tokens']:.1f}"] for row in own if RECIPES[row["attack"]].knows_guard]
        if basic:
            yield title, header, basic
        if knowing:
            yield f"{title}: attackers who know the guard", [*header, "tokens of a purified copy"], knowing


def _cells(row: Mapping[str, Any]) -> list[object]:
    return [
        row["attack"],
        row["task"],
        row["pictures"],
        f"{row['iterations']:.0f}",
        f"{row['clean_tokens']:.1f}",
        f"{row['tokens']:.1f}",
        _interval(row["amplification"]),
        _interval(row["at_cap"], percent=True),
        _interval(row["energy_amplification"]),
        f"{row['attacker_j']:.0f}",
        f"{row['extra_j']:.1f}",
    ]


def _calls_table(document: Mapping[str, Any]) -> Table:
    """Which call measured which rows: of pictures by model and attack, of the other parts whole."""
    runs = [(f"{run['model']} {run['attack']}", run["calls"]) for run in document.get("images", {}).get("calls", [])]
    runs += [(name, [document[name]["of"]]) for name in PARTS if name in document and name != "images"]
    cells: list[list[object]] = [
        [
            name,
            call["date"],
            call["commit"],
            f"{call['hardware']['cores']} cores of {call['hardware']['cpu']}",
            f"`{call['command']}`",
        ]
        for name, calls in runs
        for call in calls
    ]
    return "**Measured by**", ["rows", "date", "commit", "processor", "command"], cells


def _exits_tables(part: Mapping[str, Any]) -> Iterator[Table]:
    header = [
        "point",
        "exits before",
        "after",
        "times the operations",
        "at most",
        "times the joules",
        "J before",
        "after",
    ]
    header += ["attacker's J", "named right before", "after"]
    cells: list[list[object]] = [
        [
            row["point"],
            "/".join(map(str, row["exits_before"])),
            "/".join(map(str, row["exits_after"])),
            _interval(row["amplification"]),
            f"{row['bound']:.2f}",
            _interval(row["energy_amplification"]),
            f"{row['joules_before']:.4f}",
            f"{row['joules_after']:.4f}",
            f"{row['attacker_j']:.2f}",
            f"{row['right_before']:.0%}",
            f"{row['right_after']:.0%}",
        ]
        for row in part["rows"]
    ]
    yield f"**dyn-perceiver-nano**, {part['rows'][0]['pictures']} clean held-out digits, 8 grey levels", header, cells


def _experts_tables(part: Mapping[str, Any]) -> Iterator[Table]:
    names = {"usual": "8 at random", "by_prompt": "8 by prompt", "by_seed": "8 by prompt and seed"}
    cells: list[list[object]] = [
        [name, f"{part[key]['skew']:.2f}", f"{part[key]['busiest_rank']:.3f}"] for key, name in names.items()
    ]
    title = f"**dit-moe-nano**, 4 steps, {part['requests_observed']} requests observed, {part['ranks']} ranks"
    yield title, ["batch", "busiest expert over mean", "busiest rank over mean"], cells


def _parameters_tables(part: Mapping[str, Any]) -> Iterator[Table]:
    header = ["model", "dearest request", "dearest settings", "times the operations", "times the bytes"]
    cells: list[list[object]] = [
        [
            row["model"],
            _listed(row["request"]),
            _listed(row["settings"]),
            f"{row['amplification']:.0f}",
            f"{row['bytes_worst'] / row['bytes_usual']:.1f}",
        ]
        for row in part["rows"]
    ]
    yield "**Parameters alone**, allowed, over the usual request (counted, not measured)", header, cells


_TABLES: dict[str, Callable[[Mapping[str, Any]], Iterator[Table]]] = {
    "images": _images_tables,
    "exits": _exits_tables,
    "experts": _experts_tables,
    "parameters": _parameters_tables,
}


def _interval(value: Mapping[str, float], *, percent: bool = False) -> str:
    if percent:
        return f"{value['value']:.0%} ({value['low']:.0%} to {value['high']:.0%})"
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


if __name__ == "__main__":
    main()
