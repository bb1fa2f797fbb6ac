"""What one fault costs everybody else: each scenario before and after, on the same machine, one after the other.

    make bench-faults                                     every scenario, both sides
    python -m tests.benchmarks.bench_faults NAME ...      some of them; the others keep their last figures
    python -m tests.benchmarks.bench_faults --before none the working tree alone

A scenario is a module of ``tests/benchmarks/faults`` with a ``TITLE`` and a ``measure(start)`` that returns figures;
``start`` runs the system of one side. The side "before" is a commit, checked out into a temporary folder and run in
this environment. Figures are single runs: they tell seconds from milliseconds, not one percent from another.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any, cast

from tests.benchmarks.common import (
    ROOT,
    checked_out,
    commit,
    markdown_table,
    out_dir,
    parser_of,
    provenance,
    write_results,
)
from tests.benchmarks.faults.harness import Figures, Scenario, Start

BEFORE = "02528ce"
"""The last commit before these faults were mended."""
_FOLDER = Path(__file__).parent / "faults"
SCENARIOS = sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in ("__init__", "harness"))


def main() -> None:
    """Run, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"scenarios; default all: {', '.join(SCENARIOS)}")
    parser.add_argument("--before", default=BEFORE, help="commit to compare with, or none; default %(default)s")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SCENARIOS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    folder, names = out_dir(args), args.names or SCENARIOS
    rows = _earlier(folder)
    for name in names[:1] if args.quick else names:
        rows[name] = {**rows.get(name, {}), **_run(name, args.before)}
        document = {**provenance("faults"), "scenarios": rows}
        write_results(folder, document, _table(rows))
    print(_table(rows))


def _earlier(folder: Path) -> dict[str, Any]:
    path = folder / "faults.json"
    return dict(json.loads(path.read_text())["scenarios"]) if path.exists() else {}


def _run(name: str, before: str) -> dict[str, Any]:
    scenario = cast(Scenario, importlib.import_module(f"tests.benchmarks.faults.{name}"))
    row: dict[str, Any] = {"title": scenario.TITLE, "commit": commit(), "load": round(os.getloadavg()[0], 2)}
    if before != "none":
        with checked_out(before) as root:
            row["before"] = _told(name, "before", scenario.measure(Start(root)))
    row["after"] = _told(name, "after", scenario.measure(Start(ROOT)))
    return row


def _told(name: str, side: str, figures: Figures) -> Figures:
    print(f"{name} {side}: {dict(figures)}", flush=True)
    return dict(figures)


def _table(rows: dict[str, Any]) -> str:
    cells = [
        [row["title"], figure, row.get("before", {}).get(figure), after]
        for row in rows.values()
        for figure, after in row["after"].items()
    ]
    runs = [[row["title"], row.get("commit"), row.get("load")] for row in rows.values()]
    table = markdown_table(["fault", "figure", "before", "after"], cells)
    return f"{table}\n\n{markdown_table(['fault', 'commit of the side after', 'load before the run'], runs)}"


if __name__ == "__main__":
    main()
