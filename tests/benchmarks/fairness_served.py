"""Part of ``bench-fairness``: two tenants at a steady pace below their shares, one that classifies and one that chats,
alone, beside a tenant that sends ten times its share of the classifier, and beside one that makes pictures and clips on
the same processors. They are two because shares are of joules over all models: a chat takes as many as a hundred
classifications, so whoever does both is no light user of the classifier.

A share is half of what the classifier answers to callers that wait for each other, measured first. The conditions take
turns; figures are over all turns of a condition. The two have a ``vireo loadtest`` of their own, so that a flood does
not delay the others inside its generator. The generators are on the same machine: that of the flood takes what the
others leave (nice 19), and how much it sent is told.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from schedulers.lab.simulator import percentile
from tests.benchmarks.common import ROOT, markdown_table
from tests.support.system import System, running_system

CLASSIFIER, CHAT, PAINTER, FILMER = "dyn-perceiver-nano", "texthawk2-nano", "dit-moe-nano", "vdit-nano"
_VICTIMS: Final = ("classifying", "chatting")
KEYS: Final = {
    "classifying": "classifying-key-20c81f6e",
    "chatting": "chatting-key-5ba02d71",
    "greedy": "greedy-key-7d1be450",
    "maker": "maker-key-f00d9a12",
}
ALONE, GREEDY, MAKING = "alone", "beside ten shares", "beside pictures and clips"
DEADLINE_S: Final = 5.0
_SHARE, _CHATS_PER_S = 0.2, 1.5
"""What the two send: of the share of the classifier, and questions a second."""
_MAX_IN_FLIGHT: Final = 8192
"""Of each generator. Beyond, the greedy tenant's requests are not sent, which is less than ten shares; those of the
others have to be."""
_PICTURES_PER_S, _CLIPS_PER_S = 2.0, 0.5
_LEAD_S: Final = 5.0
"""Before and after what is measured of a turn, in which everybody sends already, or still."""
_DRAIN_S: Final = 10.0
"""After each turn, so that what is left of it does not fall into the next one."""
_LOST: Final = frozenset({"generator_error", "generator_dropped"})
Row = dict[str, Any]


def measure(*, quick: bool = False) -> dict[str, Any]:
    """The figures of the two by condition."""
    rounds, seconds = (1, 5.0) if quick else (3, 14.0)
    tenants = [
        {"name": name, "api_key_sha256": [hashlib.sha256(key.encode()).hexdigest()]} for name, key in KEYS.items()
    ]
    models: list[Row] = [
        {"id": CLASSIFIER},
        {"id": CHAT, "options": {"engine": "torch"}},
        {"id": PAINTER},
        {"id": FILMER},
    ]
    with (
        running_system("redis.cache=false", models=models, tenants=tenants, start_timeout_s=300.0) as system,
        tempfile.TemporaryDirectory() as folder,
    ):
        capacity_per_s = _capacity(system, Path(folder), 3.0 if quick else 10.0)
        records = [
            record
            for number in range(rounds)
            for name in _NAMES
            for record in _turn(system, name, capacity_per_s / 2, seconds, Path(folder) / f"{name} {number}")
        ]
    greedy = [record for record in records if record["tenant"] == "greedy" and not record["is_warm_up"]]
    rows = [_row(records, name, surface) for surface in ("http_classify", "http_chat") for name in _NAMES]
    sent = [record for record in greedy if record["outcome"] not in _LOST]
    num_wanted = 5.0 * capacity_per_s * (seconds + _LEAD_S) * rounds
    return {
        "capacity_per_s": capacity_per_s,
        "rounds": rounds,
        "seconds": seconds,
        "greedy_sent": len(sent) / num_wanted,
        "greedy_answered": sum(record["outcome"] == "ok" for record in sent) / len(sent),
        "greedy_outcomes": Counter(record["error_code"] or record["outcome"] for record in sent),
        "rows": rows,
    }


def lines(document: Mapping[str, Any]) -> list[str]:
    """A table, with each condition against the two alone."""
    header = ("what", "condition", "requests", "good", "p50 ms", "p99 ms", "p99 / alone", "good / alone")
    alone = {row["what"]: row for row in document["rows"] if row["condition"] == ALONE}
    rows = [
        (
            row["what"],
            row["condition"],
            row["num"],
            f"{row['good']:.1%}",
            _ms(row["p50_s"]),
            _ms(row["p99_s"]),
            _ratio(row["p99_s"], alone[row["what"]]["p99_s"]),
            _ratio(row["good"], alone[row["what"]]["good"]),
        )
        for row in document["rows"]
    ]
    return [
        f"The classifier answers {document['capacity_per_s']:.0f} requests a second, of which a share is half. "
        f"{document['rounds']} turns of {document['seconds']:g} s for each condition, {_DRAIN_S:g} s apart. A request "
        "is good if it is "
        f"answered within {DEADLINE_S:g} s; times are from when it was due, of a chat to its first token. With few "
        f"requests, p99 is the slowest of them. Of the greedy tenant's requests {document['greedy_sent']:.0%} were "
        f"sent, and {document['greedy_answered']:.0%} answered.",
        "",
        *markdown_table(header, rows).splitlines(),
    ]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f}"


def _ratio(one: float | None, other: float | None) -> str:
    return "-" if one is None or not other else f"{one / other:.2f}"


# -- scenarios ---------------------------------------------------------------------------------------------------------

_NAMES: Final = (ALONE, GREEDY, MAKING)


def _capacity(system: System, folder: Path, seconds: float) -> float:
    """Answers a second of the classifier to 32 callers that wait for their answers."""
    closed = {"kind": "closed", "concurrency": 32}
    phases = [
        {"name": "warm-up", "arrival": closed, "duration_s": 3.0, "is_warm_up": True},
        {"name": "closed", "arrival": closed, "duration_s": seconds},
    ]
    run = _start(system, "greedy", [{"surface": "http_classify"}], phases, folder / "capacity")
    done = [record for record in run.records() if record["outcome"] == "ok" and not record["is_warm_up"]]
    started_s = min(record["sent_at_s"] for record in done)
    return float(len(done) / (max(record["done_at_s"] for record in done) - started_s))


def _turn(system: System, condition: str, share_per_s: float, seconds: float, folder: Path) -> list[Row]:
    """One turn of a condition. Raises: RuntimeError: requests of the two were lost in the generator itself."""
    folder.mkdir()
    others = []
    if condition == GREEDY:
        flood = _phases(10.0 * share_per_s, seconds + _LEAD_S)
        others.append(_start(system, "greedy", [{"surface": "http_classify"}], flood, folder / "greedy", nice=19))
    if condition == MAKING:
        mix = [
            {
                "surface": "http_images",
                "weight": _PICTURES_PER_S,
                "draw": {"model": PAINTER, "prompts": ["class 1", "class 2"]},
            },
            {"surface": "http_videos", "weight": _CLIPS_PER_S},
        ]
        phases = _phases(_PICTURES_PER_S + _CLIPS_PER_S, seconds + _LEAD_S)
        others.append(_start(system, "maker", mix, phases, folder / "maker"))
    classify_per_s = _SHARE * share_per_s
    chat = {"model": CHAT, "max_tokens": 16, "is_numbered": True}
    mix = [
        {"surface": "http_classify", "weight": classify_per_s},
        {"surface": "http_chat", "tenant": "chatting", "weight": _CHATS_PER_S, "chat": chat},
    ]
    light = _start(system, "classifying", mix, _phases(classify_per_s + _CHATS_PER_S, seconds), folder / "light")
    mine = light.records()
    lost = {record["outcome"] for record in mine} & _LOST
    theirs = [record for other in others for record in other.records()]
    if lost:
        raise RuntimeError(f"requests of the two were lost in the generator itself: {', '.join(sorted(lost))}")
    time.sleep(_DRAIN_S)
    return [record | {"condition": condition} for record in (*mine, *theirs)]


def _phases(rate_per_s: float, seconds: float) -> list[Row]:
    arrival = {"kind": "poisson", "rate_per_s": rate_per_s}
    return [
        {"name": "lead", "arrival": arrival, "duration_s": _LEAD_S, "is_warm_up": True},
        {"name": "measured", "arrival": arrival, "duration_s": seconds},
    ]


@dataclass(frozen=True)
class _Run:
    """One ``vireo loadtest`` under way."""

    tenant: str
    process: subprocess.Popen[str]
    folder: Path

    def records(self) -> list[Row]:
        """Wait for its end. Raises: RuntimeError: the generator failed."""
        _out, said = self.process.communicate()
        if self.process.returncode not in (0, 1):  # 1: an objective was missed, which is for the table to say
            raise RuntimeError(f"the load generator failed:\n{said[-2000:]}")
        text = (self.folder / "report" / "records.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def _start(
    system: System, tenant: str, mix: Sequence[Row], phases: Sequence[Row], folder: Path, *, nice: int = 0
) -> _Run:
    folder.mkdir()
    scenario = {
        "name": tenant,
        "seed": 1,
        "model": CLASSIFIER,
        "tenants": [{"name": name, "api_key_env": f"VIREO_{name.upper()}_KEY"} for name in KEYS],
        "mix": [{"tenant": tenant} | each for each in mix],
        "phases": list(phases),
        "slo": {"deadline_ms": 1e3 * DEADLINE_S},
        "limits": {"timeout_s": 30.0, "max_in_flight": _MAX_IN_FLIGHT},
    }
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario))
    keys = {f"VIREO_{name.upper()}_KEY": key for name, key in KEYS.items()}
    command = ["nice", "-n", str(nice), sys.executable, "-m", "serving.cli", "loadtest", str(path)]
    command += ["--url", system.http_url, "--quiet", "--grpc", f"127.0.0.1:{system.grpc_port}"]
    command += ["--out", str(folder / "report")]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **keys}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return _Run(tenant, process, folder)


# -- figures -----------------------------------------------------------------------------------------------------------


def _row(records: Sequence[Row], condition: str, surface: str) -> Row:
    mine = [
        record
        for record in records
        if record["tenant"] in _VICTIMS
        and record["surface"] == surface
        and record["condition"] == condition
        and not record["is_warm_up"]
    ]
    took_s = sorted(seconds for record in mine if (seconds := _took_s(record)) is not None)
    good = sum(record["outcome"] == "ok" and _whole_s(record) <= DEADLINE_S for record in mine)
    return {
        "what": "chat, first token" if surface == "http_chat" else "classification",
        "condition": condition,
        "num": len(mine),
        "good": good / len(mine),
        "p50_s": percentile(took_s, 0.5),
        "p99_s": percentile(took_s, 0.99),
        "outcomes": {name: sum(one["outcome"] == name for one in mine) for name in {one["outcome"] for one in mine}},
    }


def _whole_s(record: Row) -> float:
    return float(record["done_at_s"] - record["scheduled_at_s"])


def _took_s(record: Row) -> float | None:
    if record["outcome"] != "ok":
        return None
    if record["surface"] != "http_chat":
        return _whole_s(record)
    first_s = record["generated"]["first_token_at_s"]
    return None if first_s is None else float(first_s - record["scheduled_at_s"])
