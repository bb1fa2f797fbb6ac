"""What the benchmarks share: where results go, what they were measured on, and tables of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
QUICK_RESULTS = ROOT / "out" / "benchmarks"


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark, beginning with ``--quick`` and ``--out``. ``doc``: of its module."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: shows that it runs, measures nothing well"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the results; default docs/benchmarks, or out/benchmarks with --quick"
    )
    return parser


def out_dir(args: argparse.Namespace) -> Path:
    """Where ``args`` wants the results."""
    return args.out or (QUICK_RESULTS if args.quick else RESULTS)


def provenance(benchmark: str) -> dict[str, Any]:
    """When, from which commit, on what and with which command a run was made."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": " ".join(
            [f"python -m tests.benchmarks.bench_{benchmark.replace('-', '_')}", *_without_out(sys.argv[1:])]
        ),
        "hardware": hardware(),
    }


def _without_out(arguments: Sequence[str]) -> list[str]:
    """Where the results went first says nothing about them."""
    places = (place for place, word in enumerate(arguments) if word == "--out")
    left_out = {beside for place in places for beside in (place, place + 1)}
    return [word for place, word in enumerate(arguments) if place not in left_out and not word.startswith("--out=")]


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


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A working tree of another commit, in a temporary folder, to be run in this environment.

    Raises: subprocess.CalledProcessError: there is no such commit.
    """
    with tempfile.TemporaryDirectory(prefix="v") as folder:
        root = Path(folder) / "before"
        command = ["git", "worktree", "add", "--detach", "--force", str(root), revision]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        try:
            _write_entry_points(root)
            yield root
        finally:
            _git("worktree", "remove", "--force", str(root))


def _write_entry_points(root: Path) -> None:
    """What installing ``root`` would: other packages find our plug-ins by the metadata of the distribution, and this
    environment's are those of our own tree. A folder that comes first on the path hides them."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = root / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class ForeignLoad:
    """Around a measurement: the ``cores`` that other processes of this machine kept busy meanwhile, on average."""

    def __enter__(self) -> ForeignLoad:
        self._started_s, self._before_s = time.monotonic(), _foreign_s()
        return self

    def __exit__(self, *_: object) -> None:
        elapsed_s = max(1e-9, time.monotonic() - self._started_s)
        self.cores = max(0.0, (_foreign_s() - self._before_s) / elapsed_s)


def busy_s() -> float:
    """Seconds that all cores of this machine have been busy since it started."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def _foreign_s() -> float:
    """Of them, without this process and its children that are over."""
    return busy_s() - sum(os.times()[:4])
