"""What serving chat costs: vLLM's own OpenAI server against Vireo around the same engine, one folder, one machine.

    python -m tests.benchmarks.bench_chat             # prints the table, writes docs/benchmarks/chat.{json,md}
    python -m tests.benchmarks.bench_chat --random    # random weights of the nano shape instead of the checkpoint
    python -m tests.benchmarks.bench_chat --profile   # and where the time of Vireo's processes goes (py-spy)

Sides: (bare) ``python -m vllm.entrypoints.openai.api_server`` with our plugin, no API key; (ours) ``vireo up``:
HAProxy, gateway, chat replica. Engine options, environment and model folder are the same, but for the size of the
encoder cache, which no option of the bare server sets (tests/benchmarks/chat_systems.py).

Requests: one picture and one question each, streamed, greedy, as many on both sides, the same bytes in the same order;
closed loop. Both sides must generate the same number of tokens. Workloads (tests/benchmarks/apps/chat_load.py): fresh
pictures; 70% whole requests repeated, which is where Vireo's exact-result cache may answer; 70% pictures repeated with
a new question each. In the first and the last no request can be answered by that cache, and that none was is checked.

Both systems are up the whole time; the one that is not measured is stopped (SIGSTOP). Sides take turns, the order turns
from round to round; ratios are taken per round. The generator is a process of its own on the same machine. Processor
seconds are those of the processes, from the first measured request to the last answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from models.registry import find
from tests.benchmarks import gateway_profile
from tests.benchmarks.apps.chat_load import WORKLOADS
from tests.benchmarks.bench_gateway import awake
from tests.benchmarks.chat_systems import MODEL, chat_model_dir, make_chat_systems, setup_of
from tests.benchmarks.common import (
    ROOT,
    markdown_table,
    out_dir,
    parser_of,
    print_table,
    provenance,
    write_results,
)
from tests.benchmarks.gateway_systems import System, running

Row = dict[str, Any]
TIMEOUT_S = 600.0
#: Load average per core, before anything is started, above which the figures are called disturbed.
QUIET_LOAD = 0.25
_PROFILED = ("gateway", "chat replica", "engine core", "bare server")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much and how often. ``requests`` by number of clients."""

    rounds: int
    requests: dict[int, int]
    workloads: tuple[str, ...]
    max_tokens: int
    size: str


def plan_of(args: argparse.Namespace) -> Plan:
    few, many = {1: 8, 4: 24, 16: 48}, {1: 40, 4: 120, 16: 240}
    requests = few if args.quick else many
    return Plan(
        rounds=args.rounds or (1 if args.quick else 5),
        requests={number: requests.get(number, 15 * number) for number in args.clients},
        workloads=tuple(args.workloads),
        max_tokens=args.max_tokens,
        size=args.size,
    )


# -- one measurement ---------------------------------------------------------------------------------------------------


class Generator:
    """The load generator at work. Entered once its warm-up is over; ``figures`` waits for its end."""

    def __init__(self, port: int, workload: str, clients: int, plan: Plan, seed: int) -> None:
        words: list[object] = [sys.executable, "-m", "tests.benchmarks.apps.chat_load", "--port", port]
        words += ["--workload", workload, "--clients", clients, "--requests", plan.requests[clients]]
        words += ["--seed", seed, "--max-tokens", plan.max_tokens, "--size", plan.size]
        self._process = subprocess.Popen(
            [str(word) for word in words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_measuring(self) -> None:
        """Return when the measured requests begin, or when the generator has failed."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def figures(self) -> Row:
        """Raises: RuntimeError: it failed."""
        try:
            out, err = self._process.communicate(timeout=TIMEOUT_S)
        finally:
            self._process.kill()
        if self._process.returncode != 0:
            raise RuntimeError(f"load generator failed:\n{err[-2000:]}")
        found: Row = json.loads(out)
        return found


def measure(system: System, workload: str, clients: int, plan: Plan, number: int) -> Row:
    """One side, one workload, one number of clients. The same arguments send the same bytes to every side."""
    seed = 1_000_000 * (number + 1) + 1_000 * WORKLOADS.index(workload) + clients
    with awake(system):
        generator = Generator(system.ports["http"], workload, clients, plan, seed)
        generator.wait_measuring()
        before_s = system.cpu_s()
        figures = generator.figures()
        after_s = system.cpu_s()
    done = figures["num_requests"]
    cpu_ms = {group: 1e3 * (seconds - before_s.get(group, 0.0)) / done for group, seconds in after_s.items()}
    row = {
        "side": system.name, "workload": workload, "clients": clients, "round": number, **figures,
        "cpu_ms_per_request": {group: round(ms, 2) for group, ms in sorted(cpu_ms.items()) if ms >= 0.005},
        "generator_cpu_ms_per_request": round(1e3 * figures["generator_cpu_s"] / done, 2),
    }  # fmt: skip
    print(
        f"{system.name:<5} {workload:<15} {clients:>2} clients {row['requests_per_s']:6.2f}/s "
        f"{row['tokens_per_s']:7.1f} tokens/s, first token {row['first_token_ms']['p50']} ms, gap "
        f"{row['gap_ms']['p50']} ms, {row['outcomes']} {row['first_error'] or ''} {row['caches'] or ''} "
        f"cpu ms {row['cpu_ms_per_request']}",
        file=sys.stderr,
        flush=True,
    )
    return row


def check(rows: Sequence[Row]) -> float:
    """Both sides did the same work. Returns the share of answers with equal texts.

    Raises: RuntimeError: a request failed, token counts differ by over 2%, or a cached answer stands where none may.
    """
    equal = total = 0
    for row in rows:
        if set(row["outcomes"]) != {"ok"}:
            raise RuntimeError(f"{row['side']} {row['workload']}: {row['outcomes']} {row['first_error']}")
        if row["workload"] != "repeated" and row["caches"].get("hit"):
            raise RuntimeError(f"{row['caches']['hit']} answers of {row['workload']} came from the result cache")
        if row["side"] == "bare":
            continue
        place = ("workload", "clients", "round")
        for bare in (other for other in rows if other["side"] == "bare" and all(other[k] == row[k] for k in place)):
            for key in ("tokens", "prompt_tokens"):
                if abs(bare[key] - row[key]) > 0.02 * bare[key]:
                    raise RuntimeError(f"{row['workload']}: {key} {row[key]} of ours, {bare[key]} of the bare server")
            equal += sum(a == b for a, b in zip(bare["texts"], row["texts"], strict=True))
            total += len(row["texts"])
    return equal / max(total, 1)


# -- profile -----------------------------------------------------------------------------------------------------------


def profile(system: System, clients: int, plan: Plan, folder: Path) -> Row:
    """Where the time of each process goes while ``clients`` callers ask about fresh pictures: by thread, by module."""
    found: Row = {}
    with awake(system):
        processes = [(group, pid) for group in _PROFILED for pid in system.pids(group)]
        generator = Generator(system.ports["http"], "fresh", clients, plan, 77)
        generator.wait_measuring()
        before = {pid: gateway_profile.thread_cpu_s(pid) for _, pid in processes}
        figures = generator.figures()
        for group, pid in processes:
            threads = gateway_profile.thread_cpu_s(pid)
            found[group] = {
                "thread ms/request": gateway_profile.difference(threads, before[pid], figures["num_requests"])
            }
        # Sampling slows the sampled: not in the same seconds as the figures by thread.
        generator = Generator(system.ports["http"], "fresh", clients, plan, 78)
        generator.wait_measuring()
        seconds, started_s = max(2.0, 0.8 * figures["seconds"]), time.monotonic()
        paths = {group: folder / f"{system.name}-{pid}.raw" for group, pid in processes}
        recorders = [gateway_profile.record(pid, seconds, paths[group]) for group, pid in processes]
        for recorder in recorders:
            recorder.wait(timeout=60 + seconds)
        print(f"sampled for {time.monotonic() - started_s:.1f} s", file=sys.stderr)
        generator.figures()
        for group, path in paths.items():
            found[group] |= gateway_profile.summarise(path, seconds)
    return {"side": system.name, "clients": clients, "groups": found}


def print_profile(found: Row) -> None:
    for group, parts in found["groups"].items():
        print(f"\nprofile of {found['side']}, {group}, {found['clients']} clients, fresh pictures")
        for name, figures in parts.items():
            shown = (f"{key} {value:g}" if "ms" in name else f"{key} {value:.1%}" for key, value in figures[:16])
            print(f"  {name}: " + ", ".join(shown))


# -- report ------------------------------------------------------------------------------------------------------------

HEADER = (
    "workload, clients", "side", "requests/s", "tokens/s", "x bare (min, median, max)", "first token p50, p99 ms",
    "gap p50, p99 ms", "tokens per piece", "server CPU ms/request", "by process",
)  # fmt: skip


def summarise(rows: Sequence[Row], systems: Sequence[System]) -> list[Row]:
    """One row per workload, number of clients and side: medians over the rounds."""
    places = list(dict.fromkeys((row["workload"], row["clients"]) for row in rows))
    return [_summary_row(system, *place, rows) for place in places for system in systems]


def _summary_row(system: System, workload: str, clients: int, rows: Sequence[Row]) -> Row:
    here = [row for row in rows if (row["workload"], row["clients"]) == (workload, clients)]
    mine = [row for row in here if row["side"] == system.name]
    bare = {row["round"]: row for row in here if row["side"] == "bare"}

    def middle(key: Callable[[Row], float | None], digits: int = 2) -> float | None:
        values = [value for row in mine if (value := key(row)) is not None]
        return round(median(values), digits) if values else None

    def timing(name: str, part: str) -> float | None:
        return middle(lambda row: row[name][part], 1)

    ratios = [row["tokens_per_s"] / bare[row["round"]]["tokens_per_s"] for row in mine if row["round"] in bare]
    later = [row["first_token_ms"]["p50"] - bare[row["round"]]["first_token_ms"]["p50"] for row in mine]
    groups = sorted({group for row in mine for group in row["cpu_ms_per_request"]})
    return {
        "workload": workload,
        "clients": clients,
        "side": system.name,
        "title": system.title,
        "requests_per_s": middle(lambda row: row["requests_per_s"]),
        "tokens_per_s": middle(lambda row: row["tokens_per_s"], 1),
        "to_bare": [round(value, 2) for value in (min(ratios), median(ratios), max(ratios))],
        "first_token_later_ms": round(median(later), 1),
        "first_token_ms": {part: timing("first_token_ms", part) for part in ("p50", "p99")},
        "gap_ms": {part: timing("gap_ms", part) for part in ("p50", "p99", "mean")},
        "tokens_per_arrival": middle(lambda row: row["tokens_per_arrival"]),
        "cpu_ms_per_request": {
            group: middle(lambda row, group=group: row["cpu_ms_per_request"].get(group, 0.0), 1)  # type: ignore[misc]
            for group in groups
        },
        "generator_cpu_ms_per_request": middle(lambda row: row["generator_cpu_ms_per_request"], 1),
        "share_from_result_cache": middle(lambda row: row["caches"].get("hit", 0) / row["num_requests"]),
    }


def cells(row: Row) -> list[object]:
    groups = {group: ms for group, ms in row["cpu_ms_per_request"].items() if ms}
    return [
        f"{row['workload']}, {row['clients']}", row["title"], row["requests_per_s"], row["tokens_per_s"],
        "-" if row["side"] == "bare" else ", ".join(f"{ratio:.2f}" for ratio in row["to_bare"]),
        _pair(row["first_token_ms"]), _pair(row["gap_ms"]), row["tokens_per_arrival"],
        round(sum(groups.values()), 1), ", ".join(f"{group} {ms:g}" for group, ms in groups.items()),
    ]  # fmt: skip


def _pair(quantiles: dict[str, float | None]) -> str:
    return f"{quantiles['p50']}, {quantiles['p99']}"


def aims(summary: Sequence[Row]) -> str:
    """The aims in one sentence each, from the table above."""
    ours = [row for row in summary if row["side"] == "ours"]
    fresh = [
        f"Fresh pictures, {row['clients']} clients: {row['to_bare'][1]:.2f} times the bare server's throughput "
        f"(aim 0.95), first token {row['first_token_later_ms']:+.1f} ms (aim at most +10)."
        for row in ours
        if row["workload"] == "fresh"
    ]
    others = [
        f"{row['workload']}, {row['clients']} clients: {row['to_bare'][1]:.2f} times (aim 1.5)."
        for row in ours
        if row["workload"] != "fresh"
    ]
    return " ".join(fresh + others)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--random", action="store_true", help="serve random weights of the nano shape")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--max-tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--size", default="448x448", help="WIDTHxHEIGHT of the pictures")
    parser.add_argument("--profile", action="store_true", help="sample the processes of both sides afterwards")
    args = parser.parse_args()
    plan, origin = plan_of(args), provenance("chat")
    is_quiet = os.getloadavg()[0] <= QUIET_LOAD * len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="vb-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        model_dir, weights = chat_model_dir(folder, is_random=args.random)
        setup = setup_of(model_dir, find(MODEL)[1].io.max_model_len)
        systems = make_chat_systems(setup, folder)
        with running(systems):
            rows = [
                measure(system, workload, clients, plan, number)
                for number in range(plan.rounds)
                for workload in plan.workloads
                for clients in plan.requests
                for system in (systems if number % 2 == 0 else systems[::-1])
            ]
            profiles = [profile(system, max(plan.requests), plan, folder) for system in systems] if args.profile else []
    equal = check(rows)
    summary = summarise(rows, systems)
    print_table(HEADER, [cells(row) for row in summary])
    for found in profiles:
        print_profile(found)
    state = "" if is_quiet else "**Disturbed: other work ran on the machine; these are no figures to quote.** "
    text = (
        f"{state}{weights}, {setup.settings.dtype}; pictures of {plan.size}, at most {plan.max_tokens} tokens, "
        f"{plan.rounds} round(s), requests per measurement {plan.requests}. {equal:.1%} of the answers are the same "
        f"text on both sides. {aims(summary)}"
    )
    print(f"\n{text}")
    for row in rows:
        del row["texts"]
    document = {**origin, "weights": weights, "is_quiet": is_quiet, "equal_texts": equal, "summary": summary,
                "profiles": profiles, "measurements": rows}  # fmt: skip
    write_results(out_dir(args), document, f"{markdown_table(HEADER, [cells(row) for row in summary])}\n\n{text}")


if __name__ == "__main__":
    main()
