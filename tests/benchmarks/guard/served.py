"""The served parts of ``bench-guard``: what neighbours of an attacker feel, and what the guard costs without attacks.

One system, and tenants that differ in nothing but what the guard may do to them (``off`` or ``enforce``), so that
conditions take turns without a restart. Everything is sent by ``vireo loadtest``, a process a tenant. Crafted pictures
come round again and again; without a cache, as here, each is answered anew, and once caught known again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from loadtest.adversarial.runs import Record, read_record
from loadtest.adversarial.victim import load_victim
from models.registry import find
from schedulers.guard.stream import StreamMonitor
from schedulers.lab.simulator import percentile
from serving.guard.calibrated import read_calibration
from serving.guard.screen import shipped_screen
from tests.benchmarks.common import ROOT
from tests.benchmarks.guard.corpus import MAX_TOKENS, items
from tests.benchmarks.guard.traces import cut
from tests.support.system import System, running_system

MODEL = "texthawk2-nano"
BENIGN_PER_S, HOSTILE_SHARE = 2.0, 0.1
"""About half of what one replica of the torch engine answers on two cores."""
NUM_BENIGN = 400
DEADLINE_S = 5.0
_KEYS = {name: f"{name}-key-4d1f7a90" for name in ("benign", "hostile-open", "hostile-guarded", "open", "guarded")}
_GUARD = {"hostile-open": "off", "open": "off"}
_LEAD_S, _DRAIN_S = 4.0, 8.0
CONDITIONS = ("nobody attacks", "attacked, guard off", "attacked, guard on")
Row = dict[str, Any]


def neighbours(args: argparse.Namespace, _: Mapping[str, Any]) -> dict[str, Any]:
    """A benign tenant's first tokens and goodput: alone, and beside one request in ten that is crafted."""
    crafted = _crafted(args.attacks)
    rounds, seconds = (1, 5.0) if args.quick else (2, 24.0)
    records: list[Row] = []
    with _system() as system, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benign = _benign(folder)
        for number in range(rounds):
            for condition in CONDITIONS:
                records += _turn(system, condition, benign, crafted, seconds, folder / f"{number}-{condition[-3:]}")
    rows = [_felt(records, condition) for condition in CONDITIONS]
    alone = rows[0]
    cells: list[list[object]] = [
        [
            row["condition"],
            row["num"],
            f"{row['good']:.1%}",
            f"{row['good'] / alone['good']:.3f}" if alone["good"] else None,
            _ms(row["p50_s"]),
            _ms(row["p99_s"]),
            f"{row['p99_s'] / alone['p99_s']:.2f}" if row["p99_s"] and alone["p99_s"] else None,
            row["hostile_num"],
            f"{row['hostile_tokens']:.0f}",
        ]
        for row in rows
    ]
    header = ["condition", "benign requests", "good", "over alone", "first token p50 ms", "p99 ms", "over alone"]
    return {
        "title": f"**{MODEL}**: a benign tenant at {BENIGN_PER_S:g} requests a second, beside {HOSTILE_SHARE:.0%} "
        f"crafted ones ({sum(map(len, crafted.values()))} pictures; {rounds} turns of {seconds:g} s; "
        f"good: whole within {DEADLINE_S:g} s)",
        "header": [*header, "crafted requests", "their tokens, mean"],
        "cells": cells,
        "rows": rows,
    }


def overhead(args: argparse.Namespace, _: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a second with the guard and without, in turns; and what its parts take, each alone."""
    rounds, seconds = (1, 4.0) if args.quick else (4, 12.0)
    rates: dict[str, list[float]] = {"open": [], "guarded": []}
    with _system() as system, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benign = _benign(folder)
        for number in range(rounds):
            for tenant in ("open", "guarded") if number % 2 == 0 else ("guarded", "open"):
                rates[tenant].append(_rate(system, tenant, benign, seconds, folder / f"{number}-{tenant}"))
    ratios = np.array(rates["guarded"]) / np.array(rates["open"])
    screen_ms, monitor_us = _screen_ms(16 if args.quick else 300), _monitor_us()
    cells: list[list[object]] = [
        ["answers a second, guard off", f"{np.mean(rates['open']):.2f}"],
        ["answers a second, guard on", f"{np.mean(rates['guarded']):.2f}"],
        [
            "on over off, mean (least to most of the turns)",
            f"{ratios.mean():.3f} ({ratios.min():.3f} to {ratios.max():.3f})",
        ],
        [
            "pre-screen, CPU ms a picture: p50, p99",
            f"{np.quantile(screen_ms, 0.5):.2f}, {np.quantile(screen_ms, 0.99):.2f}",
        ],
        ["stream monitor, CPU us a token", f"{monitor_us:.2f}"],
    ]
    return {
        "title": f"**{MODEL}**: what the guard takes where nobody attacks ({rounds} turns of {seconds:g} s each)",
        "header": ["figure", "value"],
        "cells": cells,
        "rates": rates,
    }


# -- the system and its traffic --------------------------------------------------------------------------------------


def _system() -> Any:
    tenants = [
        {
            "name": name,
            "api_key_sha256": [hashlib.sha256(key.encode()).hexdigest()],
            "guard": _GUARD.get(name, "enforce"),
        }
        for name, key in _KEYS.items()
    ]
    models = [{"id": MODEL, "options": {"engine": "torch"}}]
    return running_system("redis.cache=false", models=models, tenants=tenants, start_timeout_s=300.0)


def _crafted(runs: Path) -> dict[str, list[str]]:
    """Files by question, of answers that grew six times."""
    found: dict[str, list[str]] = {}
    for path in sorted(runs.rglob(f"{MODEL}/*/[0-9]*.json")):
        try:
            record: Record = read_record(path)
        except (TypeError, ValueError, KeyError):
            continue  # written before records held ids
        if record.amplification >= 6.0:
            found.setdefault(record.question, []).append(str(path.with_suffix(".png").resolve()))
    if not found:
        raise SystemExit(f"no picture below {runs} makes an answer six times as long; run make bench-attacks first")
    return found


def _benign(folder: Path) -> dict[str, list[str]]:
    """Files by question, of the benign corpus: those with one picture and one question."""
    found: dict[str, list[str]] = {}
    for place, item in enumerate(items(MODEL, "evaluation", range(NUM_BENIGN))):
        if len(item.files) == 1 and not item.history:
            path = folder / f"benign-{place}"
            path.write_bytes(item.files[0])
            found.setdefault(item.question, []).append(str(path))
    return found


def _turn(
    system: System,
    condition: str,
    benign: Mapping[str, list[str]],
    crafted: Mapping[str, list[str]],
    seconds: float,
    folder: Path,
) -> list[Row]:
    folder.mkdir()
    others = []
    if condition != CONDITIONS[0]:
        tenant = "hostile-open" if condition == CONDITIONS[1] else "hostile-guarded"
        rate = BENIGN_PER_S * HOSTILE_SHARE / (1.0 - HOSTILE_SHARE)
        others.append(_start(system, tenant, _mix(crafted), _phases(rate, seconds), folder / "hostile"))
    mine = _start(system, "benign", _mix(benign), _phases(BENIGN_PER_S, seconds), folder / "benign").records()
    theirs = [record for other in others for record in other.records()]
    time.sleep(_DRAIN_S)
    return [record | {"condition": condition} for record in (*mine, *theirs)]


def _rate(system: System, tenant: str, benign: Mapping[str, list[str]], seconds: float, folder: Path) -> float:
    """Answers a second to eight callers that wait for theirs."""
    closed = {"kind": "closed", "concurrency": 8}
    phases = [
        {"name": "lead", "arrival": closed, "duration_s": _LEAD_S, "is_warm_up": True},
        {"name": "measured", "arrival": closed, "duration_s": seconds},
    ]
    records = [one for one in _start(system, tenant, _mix(benign), phases, folder).records() if not one["is_warm_up"]]
    done = [one for one in records if one["outcome"] == "ok"]
    return float(len(done)) / float(max(one["done_at_s"] for one in done) - min(one["sent_at_s"] for one in done))


def _mix(files: Mapping[str, Sequence[str]]) -> list[Row]:
    """Every picture as often as any other."""
    total = sum(map(len, files.values()))
    return [_asks(question, len(own) / total, own) for question, own in sorted(files.items())]


def _asks(question: str, weight: float, files: Sequence[str]) -> Row:
    chat = {"model": MODEL, "question": question, "max_tokens": MAX_TOKENS, "files": list(files)}
    return {"surface": "http_chat", "weight": weight, "chat": chat}


def _phases(rate_per_s: float, seconds: float) -> list[Row]:
    arrival = {"kind": "poisson", "rate_per_s": rate_per_s}
    return [
        {"name": "lead", "arrival": arrival, "duration_s": _LEAD_S, "is_warm_up": True},
        {"name": "measured", "arrival": arrival, "duration_s": seconds},
    ]


@dataclass(frozen=True)
class _Run:
    """One ``vireo loadtest`` under way."""

    process: subprocess.Popen[str]
    folder: Path

    def records(self) -> list[Row]:
        """Wait for its end. Raises: RuntimeError: the generator failed."""
        _out, said = self.process.communicate()
        if self.process.returncode not in (0, 1):  # 1: an objective was missed, which is for the table to say
            raise RuntimeError(f"the load generator failed:\n{said[-2000:]}")
        text = (self.folder / "report" / "records.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def _start(system: System, tenant: str, mix: Sequence[Row], phases: Sequence[Row], folder: Path) -> _Run:
    folder.mkdir(parents=True)
    scenario = {
        "name": tenant,
        "seed": 1,
        "model": MODEL,
        "tenants": [{"name": tenant, "api_key_env": "VIREO_GUARD_BENCH_KEY"}],
        "mix": [{"tenant": tenant} | each for each in mix],
        "phases": list(phases),
        "slo": {"deadline_ms": 1e3 * DEADLINE_S},
        "limits": {"timeout_s": 60.0},
    }
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario))
    command = [sys.executable, "-m", "serving.cli", "loadtest", str(path), "--url", system.http_url, "--quiet"]
    command += ["--out", str(folder / "report")]
    environment = {**os.environ, "VIREO_GUARD_BENCH_KEY": _KEYS[tenant]}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return _Run(process, folder)


# -- figures ---------------------------------------------------------------------------------------------------------


def _felt(records: Sequence[Row], condition: str) -> Row:
    of_condition = [one for one in records if one["condition"] == condition and not one["is_warm_up"]]
    mine = [one for one in of_condition if one["tenant"] == "benign"]
    theirs = [one for one in of_condition if one["tenant"] != "benign" and one["outcome"] == "ok"]
    firsts = sorted(
        one["generated"]["first_token_at_s"] - one["scheduled_at_s"]
        for one in mine
        if one["outcome"] == "ok" and one["generated"]["first_token_at_s"] is not None
    )
    good = [one["outcome"] == "ok" and one["done_at_s"] - one["scheduled_at_s"] <= DEADLINE_S for one in mine]
    tokens = [one["generated"]["num_tokens"] for one in theirs]
    return {
        "condition": condition,
        "num": len(mine),
        "good": float(np.mean(good)) if good else 0.0,
        "p50_s": percentile(firsts, 0.5),
        "p99_s": percentile(firsts, 0.99),
        "hostile_num": len(theirs),
        "hostile_tokens": float(np.mean(tokens)) if tokens else 0.0,
    }


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f}"


def _screen_ms(count: int) -> list[float]:
    """CPU milliseconds of the pre-screen for each picture of benign requests."""
    victim, screen = load_victim(MODEL), shipped_screen()
    pictures = [tiles for item in items(MODEL, "evaluation", range(count)) for tiles, _ in cut(item, victim)]
    screen.p_value(pictures[0])
    found = []
    for tiles in pictures:
        began_s = time.process_time()
        screen.p_value(tiles)
        found.append(1e3 * (time.process_time() - began_s))
    return found


def _monitor_us(num_tokens: int = 20_000) -> float:
    """CPU microseconds that following one token takes, and a look at the p-values every eight."""
    _, variant = find(MODEL)
    calibration = None if variant.weights is None else read_calibration(variant.weights)
    if calibration is None:
        raise SystemExit(f"{MODEL} has no guard.json")
    monitor = StreamMonitor(calibration.groups["all"], 100, calibration.special_ids)
    tokens = np.random.default_rng(0).integers(10, 600, num_tokens).tolist()
    began_s = time.process_time()
    for number, token in enumerate(tokens):
        monitor.push((token,), (-9.0,))
        if number % 8 == 0:
            monitor.p_values()
    return 1e6 * (time.process_time() - began_s) / num_tokens
