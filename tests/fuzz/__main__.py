"""Throws what nobody should send at a running system, for a bounded time: `make fuzz`.

Changed image files to the decoder, requests derived from our OpenAPI document (schemathesis), and damaged protobuf
messages to every RPC. A fault is a picture read wrongly, an answer that no bad input may get (5xx, `INTERNAL`, or
silence), or a system that is not ready or has grown afterwards. What was found lies in ``out/fuzz``, as bytes that can
be sent again; the exit code is 1.

    make fuzz                                            ten minutes in all
    python -m tests.fuzz --seconds 60 --seed 7 --only protobufs
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from models.registry import default_variants
from tests.fuzz import images, protobufs
from tests.support.system import ROOT, System, running_system
from tests.support.waiting import wait_until

_SERVED = tuple({"id": variant.id} for _, variant in default_variants())
_MAX_GROWTH_MIB = 1024
"""Caches fill meanwhile, and allocators keep what they had: beyond this, something is held that should not be."""
_SHARES = {"images": 0.15, "api": 0.5, "protobufs": 0.35}


def main() -> int:
    """Run what was asked for; return the exit code."""
    args = _arguments()
    console = Console()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = {kind: share for kind, share in _SHARES.items() if args.only in (None, kind)}
    seconds = {kind: args.seconds * share / sum(chosen.values()) for kind, share in chosen.items()}
    faults: list[str] = []
    if "images" in seconds:
        faults += _images(args.seed, seconds["images"], args.out, console)
    if seconds.keys() - {"images"}:
        with running_system(models=_SERVED, start_timeout_s=300.0) as system:
            faults += _system(system, args.seed, seconds, args.out, console)
    for fault in faults:
        console.print(f"fault: {fault}", style="bold red", soft_wrap=True)
    console.print(f"{len(faults)} faults with seed {args.seed}; {args.out} has what was sent" if faults else "no fault")
    return 1 if faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long in all; default %(default)g")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: a fresh one, which is printed")
    parser.add_argument("--only", choices=_SHARES, help="one kind alone")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz", help="folder for what was found")
    return parser.parse_args()


def _system(system: System, seed: int, seconds: dict[str, float], out: Path, console: Console) -> list[str]:
    faults: list[str] = []
    before = _resident_mib(system)
    if "api" in seconds:
        faults += _api(system, seed, seconds["api"], out, console)
    if "protobufs" in seconds:
        faults += _protobufs(system, seed, seconds["protobufs"], out, console)
    try:
        wait_until(lambda: system.is_ready() and system.in_flight() == 0, "ready, and nothing in flight", 120.0)
    except AssertionError as error:
        faults.append(f"afterwards the system was unwell: {error}")
    growth = _resident_mib(system) - before
    console.print(f"memory of the whole system: {before} MiB before, {growth:+} MiB after")
    return [*faults, *([f"the system grew by {growth} MiB"] if growth > _MAX_GROWTH_MIB else [])]


def _api(system: System, seed: int, seconds: float, out: Path, console: Console) -> list[str]:
    """Server errors and answers that are not as documented. Everything else is a matter of taste and left out."""
    console.rule(f"OpenAPI, {seconds:.0f} s")
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{system.http_url}/openapi.json",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--max-time", str(max(1, int(seconds))), "--seed", str(seed), "--request-timeout", "60", "--workers", "2",
        "--continue-on-failure", "--suppress-health-check", "all", "--generation-database", "none", "--warnings", "off",
        "--report", "ndjson", "--report-ndjson-path", str(out / "api.ndjson"), "--no-color",
    ]  # fmt: skip
    log = out / "api.log"
    with log.open("w") as stream:
        done = subprocess.run(command, cwd=out, stdout=stream, stderr=stream, check=False, timeout=seconds + 300)
    console.print(log.read_text()[-3000:], markup=False, highlight=False)
    return [] if done.returncode == 0 else [f"schemathesis ended with {done.returncode}: {log}"]


def _protobufs(system: System, seed: int, seconds: float, out: Path, console: Console) -> list[str]:
    console.rule(f"protobuf messages, {seconds:.0f} s")
    with _bar(console, "messages", seconds) as told:
        found = protobufs.run(system.grpc_address, seed, seconds, told)
    return _grouped([(f"{sent.method}: {sent.outcome}", sent.data) for sent in found], out, "protobuf")


def _images(seed: int, seconds: float, out: Path, console: Console) -> list[str]:
    console.rule(f"image files, {seconds:.0f} s")
    with _bar(console, "files", seconds) as told:
        found = images.run(seed, seconds, told)
    wrong = [(f"{one.mutant.picture.name}, {one.mutant.change}: {one.outcome}", one.mutant.data) for one in found]
    return _grouped(wrong, out, "image")


def _grouped(found: Sequence[tuple[str, bytes]], out: Path, prefix: str) -> list[str]:
    """One line for each kind of fault, with the shortest input that showed it."""
    kinds: dict[str, list[bytes]] = {}
    for what, data in found:
        kinds.setdefault(what, []).append(data)
    lines = []
    for number, (what, inputs) in enumerate(kinds.items()):
        kept = out / f"{prefix}-{number}.bin"
        kept.write_bytes(min(inputs, key=len))
        lines.append(f"{len(inputs)}x {what} ({kept})")
    return lines


class _bar:
    """A progress bar over time that also says how many were sent."""

    def __init__(self, console: Console, noun: str, seconds: float) -> None:
        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("", total=seconds)
        self._noun, self._begun_s = noun, time.monotonic()

    def __enter__(self) -> Callable[[int], None]:
        self._progress.start()
        return self._tell

    def _tell(self, number: int) -> None:
        done_s = time.monotonic() - self._begun_s
        self._progress.update(self._task, completed=done_s, description=f"{number:,} {self._noun}")

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _resident_mib(system: System) -> int:
    total = 0
    for process in system.processes():
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total >> 20


if __name__ == "__main__":
    sys.exit(main())
