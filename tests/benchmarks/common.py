"""What the benchmarks share: where results go, what they were measured on, and tables of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
QUICK_RESULTS = ROOT / "out" / "benchmarks"


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--quick`` and ``--out``."""
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: shows that it runs, measures nothing well"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results; default docs/benchmarks, or out/benchmarks with --quick"
    )


def out_dir(args: argparse.Namespace) -> Path:
    """Where ``args`` wants the results."""
    return args.out or (QUICK_RESULTS if args.quick else RESULTS)


def provenance(benchmark: str) -> dict[str, Any]:
    """When, from which commit, on what and with which command a run was made."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join([f"python -m tests.benchmarks.bench_{benchmark.replace('-', '_')}", *sys.argv[1:]]),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores and the versions that speed depends on; the load is that of the last minute before."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "ray", "uvloop", "grpcio")},
    }


def commit() -> str:
    """Commit of the working tree; marked when tracked files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for people; a ``None`` is shown as a dash."""
    cells = [list(header), ["---"] + ["---:"] * (len(header) - 1)]
    cells += [["-" if cell is None else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The same in fixed columns, for a terminal."""
    cells = [list(header), *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *padded]), flush=True)


def write_results(folder: Path, document: Mapping[str, Any], markdown: str) -> None:
    """``<benchmark>.json`` with everything, ``<benchmark>.md`` with what a reader wants."""
    folder.mkdir(parents=True, exist_ok=True)
    name, hardware_row = document["benchmark"], document["hardware"]
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    origin = (
        f"{document['date']}, commit {document['commit']}, {hardware_row['cores']} cores of {hardware_row['cpu']}, "
        f"torch {hardware_row['torch']}, Ray {hardware_row['ray']}, load before {hardware_row['load_average_before']}; "
        f"`{document['command']}`"
    )
    (folder / f"{name}.md").write_text(f"{origin}\n\n{markdown}\n")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
