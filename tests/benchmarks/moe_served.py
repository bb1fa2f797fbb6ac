"""Part of ``bench-moe``: pictures a second of the nano model served, against a plain loop over the same requests.

The loop is what one writes without a server: the runner's slices for one request after the other, alone, in a process
with the same number of threads. Sides take turns, round by round. Every served request has a deadline, half as long
again as that many clients would wait for the loop: what comes later, or is refused, has not met it. The server is told
the deadline once the model is calibrated; before, its predictions are guesses.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import torch

from models.contract import Job
from models.io import ImageRequest
from models.registry import find
from tests.benchmarks.common import markdown_table
from tests.support.system import System, running_system

MODEL: Final = "dit-moe-nano"
_SETTINGS: Final = {"num_inference_steps": 20, "guidance_scale": 2.0, "k0": 2}
_THREADS: Final = 1


@dataclass
class Taken:
    """Of one side: pictures a second of each round; of each request, seconds to its picture, and whether in time."""

    per_s: list[float] = field(default_factory=list)
    request_s: list[float] = field(default_factory=list)
    requests: int = 0
    met: int = 0


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Both sides, for each number of clients."""
    rounds, pictures, clients = (2, 8, (4,)) if quick else (5, 32, (1, 4, 16))
    torch.set_num_threads(_THREADS)
    runner, prompts = _runner(), _prompts(pictures)
    _loop(runner, prompts[:2], Taken())
    rows = []
    models = ({"id": MODEL, "threads": _THREADS, "options": {"max_batch": 16, "max_jobs": 32}},)
    with running_system(models=models) as system:
        asyncio.run(_served(system, prompts[:2], 2, 60.0, Taken()))
        for count in clients:
            loop, served = Taken(), Taken()
            for _ in range(rounds):
                _loop(runner, prompts, loop)
                asyncio.run(_served(system, prompts, count, max(0.5, 1.5 * count / loop.per_s[-1]), served))
            rows.append(_row(count, loop, served))
    return {"model": MODEL, "settings": _SETTINGS, "threads": _THREADS, "rounds": rounds, "rows": rows}


def lines(document: dict[str, Any]) -> list[str]:
    """A table."""
    header = ("clients", "loop, pictures/s", "served, pictures/s", "ratio", "deadlines met", "p50", "p99")
    rows = [
        (
            row["clients"],
            f"{row['loop_per_s']:.2f}",
            f"{row['served_per_s']:.2f}",
            f"{row['served_per_s'] / row['loop_per_s']:.2f}",
            f"{row['met']} of {row['requests']}",
            f"{row['p50_s']:.2f} s",
            f"{row['p99_s']:.2f} s",
        )
        for row in document["rows"]
    ]
    return [
        f"{document['model']}, {document['settings']}, {document['threads']} thread on both sides; medians of "
        f"{document['rounds']} rounds. Served over HTTP, by one replica; clients wait for one picture at a time.",
        "",
        *markdown_table(header, rows).splitlines(),
    ]


def _runner() -> Job:
    family, variant = find(MODEL)
    assert family.build is not None
    assert family.runner is not None
    runner: Job = family.runner.load()(family.build.load()(variant, "cpu"), variant)
    return runner


def _prompts(count: int) -> list[str]:
    _, variant = find(MODEL)
    return [f"class {number % variant.config['network']['num_classes']}" for number in range(count)]


def _loop(runner: Job, prompts: Sequence[str], taken: Taken) -> None:
    family, variant = find(MODEL)
    point, (width, height) = family.check_point(_SETTINGS), variant.io.size
    started_s = time.perf_counter()
    for seed, prompt in enumerate(prompts):
        state = runner.open(ImageRequest(width=width, height=height, prompt=prompt), point, seed)
        while runner.remaining(state):
            runner.step([state])
        runner.close(state)
    taken.per_s.append(len(prompts) / (time.perf_counter() - started_s))


async def _served(system: System, prompts: Sequence[str], clients: int, deadline_s: float, taken: Taken) -> None:
    waiting, num_made = list(enumerate(prompts)), 0

    async def ask(http: httpx.AsyncClient, budget: dict[str, float]) -> None:
        nonlocal num_made
        while waiting:
            seed, prompt = waiting.pop(0)
            vireo = {"settings": _SETTINGS, "background": False, **budget}
            body = {"model": MODEL, "prompt": prompt, "seed": seed, "vireo": vireo}
            begun_s = time.perf_counter()
            answer = await http.post("/v1/images/generations", json=body)
            took_s = time.perf_counter() - begun_s
            taken.requests += 1
            if answer.status_code == 200:
                num_made += 1
                taken.request_s.append(took_s)
                taken.met += took_s <= deadline_s

    async with httpx.AsyncClient(base_url=system.http_url, timeout=120.0) as http:
        block = (await http.get(f"/v1/models/{MODEL}")).json()["vireo"]
        budget = {"latency_ms": 1e3 * deadline_s} if block["calibrated"] else {}
        started_s = time.perf_counter()
        await asyncio.gather(*(ask(http, budget) for _ in range(clients)))
        taken.per_s.append(num_made / (time.perf_counter() - started_s))


def _row(clients: int, loop: Taken, served: Taken) -> dict[str, Any]:
    seconds = sorted(served.request_s) or [float("nan")]
    return {
        "clients": clients,
        "loop_per_s": statistics.median(loop.per_s),
        "served_per_s": statistics.median(served.per_s),
        "requests": served.requests,
        "met": served.met,
        "p50_s": statistics.median(seconds),
        "p99_s": seconds[int(0.99 * (len(seconds) - 1))],
    }
