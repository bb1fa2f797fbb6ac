"""What the front door costs: the same picture and the same model call through five systems, over HTTP and gRPC.

    python -m tests.benchmarks.bench_gateway            # prints the table, writes docs/benchmarks/gateway.{json,md}
    python -m tests.benchmarks.bench_gateway --profile  # and where the gateway's and the classifier's time goes

Sides: (1) default Ray Serve, a gateway and an inner deployment in plain user code, one model call per request, nothing
tuned; (2) the same code with both throughput flags (HAProxy); (3) Vireo, result cache off; (4) Vireo, cache on, sent
pictures that it has answered before, as a note; (5) no Ray: FastAPI on uvicorn, and a grpc.aio server, the model in
the process, as the limit. All run the operating point that Vireo picks without a budget, with one torch thread per
model process, and must give the same labels.

Requests: one 64x64 PNG of a digit each, all different; closed loop with 1, 16 and 64 callers. The generator is a
process of its own *on the same machine* and takes its share of the cores from every side alike. All systems are up the
whole time; those that are not measured are stopped (SIGSTOP), because Ray works in the background: the last line says
how much. Sides take turns within a round, in rotating order; ratios are taken per round, and their median is reported.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from models.operating_points import read_table
from models.registry import find
from tests.benchmarks import gateway_profile
from tests.benchmarks.common import (
    ROOT,
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)
from tests.benchmarks.gateway_systems import System, make_systems, running

MODEL = "dyn-perceiver-nano"
SETTLE_S = 0.7
NUM_LABELS = 48
#: Pictures for the note with the cache on: few, so that the warm-up has them answered.
CACHED_PICTURES = 64
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how often."""

    rounds: int
    duration_s: float
    warm_up_s: float
    clients: tuple[int, ...]
    surfaces: tuple[str, ...]


def plan_of(args: argparse.Namespace) -> Plan:
    return Plan(
        rounds=args.rounds or (1 if args.quick else 5),
        duration_s=args.duration_s or (2.0 if args.quick else 5.0),
        warm_up_s=0.5 if args.quick else 1.0,
        clients=tuple(args.clients or ((1, 16) if args.quick else (1, 16, 64))),
        surfaces=tuple(args.surfaces),
    )


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- one measurement ---------------------------------------------------------------------------------------------------


def generate(surface: str, port: int, *arguments: object) -> Row:
    """Run the load generator and read its figures. Raises: RuntimeError: it failed."""
    command = [sys.executable, "-m", "tests.benchmarks.apps.closed_loop", surface, "--port", str(port)]
    command += [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"load generator failed:\n{done.stderr[-2000:]}")
    figures: Row = json.loads(done.stdout)
    return figures


@contextmanager
def awake(system: System) -> Iterator[None]:
    """Let a stopped system run, and stop it again."""
    system.signal(signal.SIGCONT)
    time.sleep(SETTLE_S)
    try:
        yield
    finally:
        system.signal(signal.SIGSTOP)


def measure(system: System, surface: str, clients: int, plan: Plan, number: int) -> Row:
    pictures = CACHED_PICTURES if system.name == "ours-cache" else 1000
    with awake(system):
        before_s = system.cpu_s()
        figures = generate(
            surface, system.ports[surface], "--clients", clients, "--duration-s", plan.duration_s + plan.warm_up_s,
            "--warm-up-s", plan.warm_up_s, "--pictures", pictures,
        )  # fmt: skip
        after_s = system.cpu_s()
    sent = max(figures["num_sent"], 1)
    cpu_ms = {group: 1e3 * (after_s[group] - before_s.get(group, 0.0)) / sent for group in after_s}
    row = {
        "side": system.name, "surface": surface, "clients": clients, "round": number, **figures,
        "cpu_ms_per_request": {group: round(ms, 3) for group, ms in sorted(cpu_ms.items()) if ms >= 0.0005},
        "generator_cpu_ms_per_request": round(1e3 * figures["cpu_s"] / sent, 3),
    }  # fmt: skip
    progress(
        f"{system.name:<12} {surface} {clients:>3} clients  {row['requests_per_s']:8.1f}/s  p50 {row['p50_ms']} ms  "
        f"{row['outcomes']}  cpu ms {row['cpu_ms_per_request']}"
    )
    return row


def idle_cpu(system: System, seconds: float) -> float:
    """Cores that a system uses when nobody asks it anything."""
    with awake(system):
        before_s, started_s = sum(system.cpu_s().values()), time.monotonic()
        time.sleep(seconds)
        return (sum(system.cpu_s().values()) - before_s) / (time.monotonic() - started_s)


def check_labels(systems: Sequence[System], surfaces: Sequence[str]) -> int:
    """Every side on every surface gives the same labels. Raises: RuntimeError: they do not."""
    answers: dict[str, list[str | None]] = {}
    for system in systems:
        with awake(system):
            for surface in surfaces:
                figures = generate(surface, system.ports[surface], "--labels", NUM_LABELS)
                answers[f"{system.name} {surface}"] = figures["labels"]
    reference = answers[f"bare {surfaces[0]}"]
    different = {name: labels for name, labels in answers.items() if labels != reference}
    if different or None in reference:
        raise RuntimeError(f"labels differ from those of bare {surfaces[0]}: {reference} against {different}")
    return len(reference)


# -- profile -----------------------------------------------------------------------------------------------------------


def profile(system: System, surface: str, clients: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Sample the gateway and the model replica while ``clients`` callers load them."""
    found: dict[str, Any] = {}
    with awake(system):
        replicas = [(group, pid) for group in ("gateway", "model") for pid in system.pids(group)]
        before = {pid: gateway_profile.thread_cpu_s(pid) for _, pid in replicas}
        figures = generate(surface, system.ports[surface], "--clients", clients, "--duration-s", seconds)
        for group, pid in replicas:
            threads = gateway_profile.thread_cpu_s(pid)
            found[f"{group} {pid}"] = {
                "thread ms/request": gateway_profile.difference(threads, before[pid], max(figures["num_sent"], 1))
            }
        # Sampling slows the sampled: not in the same seconds as the figures by thread.
        paths = {pid: folder / f"{system.name}-{surface}-{pid}.raw" for _, pid in replicas}
        recorders = [gateway_profile.record(pid, seconds, path) for pid, path in paths.items()]
        generate(surface, system.ports[surface], "--clients", clients, "--duration-s", seconds + 3)
        for recorder in recorders:
            recorder.wait(timeout=60)
        for group, pid in replicas:
            found[f"{group} {pid}"] |= gateway_profile.summarise(paths[pid], seconds)
    groups = {name.rpartition(" ")[0]: parts for name, parts in found.items()}
    return {"side": system.name, "surface": surface, "clients": clients, "load": figures, "groups": groups}


def print_profile(found: dict[str, Any]) -> None:
    for group, parts in found["groups"].items():
        print(f"\nprofile of {found['side']}, {group}, {found['surface']}, {found['clients']} clients")
        for name, figures in parts.items():
            shown = (f"{key} {value:g}" if "ms" in name else f"{key} {value:.1%}" for key, value in figures[:14])
            print(f"  {name}: " + ", ".join(shown))


# -- report ------------------------------------------------------------------------------------------------------------

HEADER = (
    "surface, clients", "side", "requests/s", "x default", "p50 ms", "p99 ms", "server CPU ms/request", "by group",
    "generator CPU ms",
)  # fmt: skip


def summarise(rows: Sequence[Row], systems: Sequence[System], plan: Plan) -> list[Row]:
    summary = []
    for surface in plan.surfaces:
        for clients in plan.clients:
            at = [row for row in rows if row["surface"] == surface and row["clients"] == clients]
            plain = {row["round"]: row["requests_per_s"] for row in at if row["side"] == "plain"}
            for system in systems:
                mine = [row for row in at if row["side"] == system.name]
                summary.append(_summary_row(system, surface, clients, mine, plain))
    return summary


def _summary_row(system: System, surface: str, clients: int, rows: Sequence[Row], plain: dict[int, float]) -> Row:
    def middle(key: Callable[[Row], float | None], digits: int) -> float | None:
        values = [value for row in rows if (value := key(row)) is not None]
        return round(median(values), digits) if values else None

    def group_ms(group: str) -> float | None:
        return middle(lambda row: row["cpu_ms_per_request"].get(group, 0.0), 2)

    groups = sorted({group for row in rows for group in row["cpu_ms_per_request"]})
    ratios = [row["requests_per_s"] / plain[row["round"]] for row in rows if plain.get(row["round"])]
    return {
        "surface": surface,
        "clients": clients,
        "side": system.name,
        "title": system.title,
        "requests_per_s": middle(lambda row: row["requests_per_s"], 1),
        "to_plain": round(median(ratios), 2) if ratios else None,
        "p50_ms": middle(lambda row: row["p50_ms"], 2),
        "p99_ms": middle(lambda row: row["p99_ms"], 2),
        "failed": sum(count for row in rows for name, count in row["outcomes"].items() if name != "ok"),
        "cpu_ms_per_request": {group: group_ms(group) for group in groups},
        "generator_cpu_ms_per_request": middle(lambda row: row["generator_cpu_ms_per_request"], 2),
    }


def cells(row: Row) -> list[object]:
    groups = {group: ms for group, ms in row["cpu_ms_per_request"].items() if ms}
    return [
        f"{row['surface']}, {row['clients']}", row["title"], row["requests_per_s"], row["to_plain"], row["p50_ms"],
        row["p99_ms"], round(sum(groups.values()), 2), ", ".join(f"{group} {ms:g}" for group, ms in groups.items()),
        row["generator_cpu_ms_per_request"],
    ]  # fmt: skip


def aims(summary: Sequence[Row]) -> str:
    """The two aims in one sentence each, from the table above."""

    def find(side: str, clients: int) -> Row | None:
        return next((r for r in summary if (r["side"], r["clients"], r["surface"]) == (side, clients, "http")), None)

    many, one, flagged = find("ours", 16), find("ours", 1), find("plain-flags", 1)
    text = []
    if many:
        text.append(f"HTTP, 16 clients: Vireo answers {many['to_plain']} times as many as default Serve (aim 5).")
    if one and flagged and one["p50_ms"] and flagged["p50_ms"]:
        difference = one["p50_ms"] - flagged["p50_ms"]
        text.append(f"HTTP, 1 client: Vireo's p50 is {difference:+.2f} ms to the flagged app's (aim at most +1.5).")
    return " ".join(text)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--duration-s", type=float, help="seconds per measurement; default 5")
    parser.add_argument("--clients", type=int, nargs="+", help="default 1 16 64")
    parser.add_argument("--surfaces", nargs="+", choices=("http", "grpc"), default=["http", "grpc"])
    parser.add_argument("--sides", nargs="+", help="only these, for trying things out")
    parser.add_argument("--profile", action="store_true", help="sample Vireo's replicas with py-spy afterwards")
    args = parser.parse_args()
    plan, origin = plan_of(args), provenance("gateway")
    best = next(iter(read_table(find(MODEL)[1]).points))
    with tempfile.TemporaryDirectory(prefix="vb-", ignore_cleanup_errors=True) as folder:
        systems = [
            system
            for system in make_systems(Path(folder), best)
            if not args.sides or system.name in (*args.sides, "bare")
        ]
        with running(systems):
            num_labels = check_labels(systems, plan.surfaces)
            idle = {system.name: round(idle_cpu(system, 2.0 if args.quick else 10.0), 3) for system in systems}
            rows = [
                measure(systems[(number + step) % len(systems)], surface, clients, plan, number)
                for number in range(plan.rounds)
                for surface in plan.surfaces
                for clients in plan.clients
                for step in range(len(systems))
            ]
            profiles = [
                profile(system, surface, 16, 3.0 if args.quick else 10.0, Path(folder))
                for system in systems
                if args.profile and system.name == "ours"
                for surface in plan.surfaces
            ]
    summary = summarise(rows, systems, plan)
    print_table(HEADER, [cells(row) for row in summary])
    for found in profiles:
        print_profile(found)
    text = (
        f"Operating point `{best}` on every side; {num_labels} pictures got the same label from each side "
        f"on each surface. {plan.rounds} round(s) of {plan.duration_s:g} s. Cores used when idle: "
        + ", ".join(f"{name} {cores:g}" for name, cores in idle.items())
        + f". {aims(summary)}"
    )
    print(f"\n{text}")
    document = {
        **origin,
        "operating_point": best,
        "idle_cores": idle,
        "summary": summary,
        "profiles": profiles,
        "measurements": rows,
    }
    write_results(out_dir(args), document, f"{markdown_table(HEADER, [cells(row) for row in summary])}\n\n{text}")


if __name__ == "__main__":
    main()
