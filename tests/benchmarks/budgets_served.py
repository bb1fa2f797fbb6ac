"""Part of ``bench-budgets``: a small trace of two models on a served system, and the same trace simulated.

The system runs classifications through the whole network and pictures of 20 steps, by one replica each. First, some
requests alone say how the costs of this machine compare with those of the tables (one factor a model, from
``compute_ms``), and what the way there and back adds, of which each simulated request draws one. With these numbers the
loaded minute is predicted; nothing of it is fitted afterwards.
"""

from __future__ import annotations

import asyncio
import base64
import io
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Final

import httpx
import numpy as np
from PIL import Image

from schedulers.lab.cluster import System, simulate_system
from schedulers.lab.served import Seconds, ServedModel
from schedulers.lab.simulator import percentile
from schedulers.lab.traces import Request
from serving.cli.simulated import shipped_models
from tests.benchmarks.common import markdown_table
from tests.support.system import System as Served
from tests.support.system import running_system

CLASSIFIER: Final = "dyn-perceiver-nano"
PAINTER: Final = "dit-moe-nano"
_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    CLASSIFIER: {"exit_1": 2.0, "exit_2": 2.0, "exit_3": 2.0},
    PAINTER: {"num_inference_steps": 20, "guidance_scale": 2.0, "k0": 2},
}
_RATES_PER_S: Final = {CLASSIFIER: 10.0, PAINTER: 0.8}
_LATENCY_S: Final = {CLASSIFIER: 0.1, PAINTER: 2.0}
_ALONE: Final = {CLASSIFIER: 100, PAINTER: 20}


def measure(*, quick: bool = False) -> dict[str, Any]:
    """Alone, together, simulated."""
    seconds = 8.0 if quick else 90.0
    models = tuple({"id": name, "threads": 1} for name in _RATES_PER_S)
    with running_system(models=models) as system:
        asyncio.run(_alone(system, 3))
        alone = asyncio.run(_alone(system, 5 if quick else 0))
        trace = _trace(seconds)
        served = asyncio.run(_play(system, trace))
    simulated = _simulate(trace, alone)
    rows = [row for name in _RATES_PER_S for row in _rows(name, trace, served, simulated)]
    return {"seconds": seconds, "num_requests": len(trace), "alone": alone, "rows": rows}


def _trace(seconds: float) -> list[Request]:
    rng, requests = Random(7), []
    for name, rate_per_s in _RATES_PER_S.items():
        now_s = 0.0
        while (now_s := now_s + rng.expovariate(rate_per_s)) < seconds:
            requests.append(Request(arrived_s=now_s, model=name, latency_s=_LATENCY_S[name]))
    return sorted(requests, key=lambda request: request.arrived_s)


# -- served ----------------------------------------------------------------------------------------------------------


def _picture(number: int) -> str:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def _ask(http: httpx.AsyncClient, name: str, number: int) -> dict[str, Any]:
    """What came of one request; ``latency_s`` counts from when it was sent."""
    body: dict[str, Any]
    budget: dict[str, Any] = {"settings": _SETTINGS[name], "latency_ms": 60e3}
    if name == CLASSIFIER:
        path, body = "/v1/classify", {"model": name, "images": [_picture(number)], "vireo": budget}
    else:
        budget["background"] = False
        path = "/v1/images/generations"
        body = {"model": name, "prompt": f"class {number % 90}", "seed": number, "vireo": budget}
    begun_s = time.perf_counter()
    answer = await http.post(path, json=body)
    found = answer.json()
    if answer.status_code != 200:
        return {"latency_s": time.perf_counter() - begun_s, "error": str(found)[:200]}
    block = found.get("vireo") or found["results"][0]["vireo"]
    took_s = time.perf_counter() - begun_s
    return {"latency_s": took_s, "compute_s": block["compute_ms"] / 1e3, "joules": block["energy_j"]}


async def _alone(system: Served, count: int) -> dict[str, dict[str, Any]]:
    """Medians of requests one after the other, and what each spent outside the engine. They are as far apart as in the
    trace on average: processes that have just run answer sooner than those that have to be woken. ``count``: of each,
    ``_ALONE`` if it is 0."""
    found = {}
    async with httpx.AsyncClient(base_url=system.http_url, timeout=120.0) as http:
        for name, usual in _ALONE.items():
            answers = []
            for number in range(count or usual):
                await asyncio.sleep(1.0 / _RATES_PER_S[name])
                answers.append(await _ask(http, name, 10_000 * (count + 1) + number))
            found[name] = {
                **{
                    key: statistics.median(answer[key] for answer in answers)
                    for key in ("latency_s", "compute_s", "joules")
                },
                "ways_s": [answer["latency_s"] - answer["compute_s"] for answer in answers],
            }
    return found


async def _play(system: Served, trace: Sequence[Request]) -> list[dict[str, Any]]:
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=system.http_url, timeout=120.0, limits=limits) as http:
        start_s = time.perf_counter()

        async def one(number: int, request: Request) -> dict[str, Any]:
            await asyncio.sleep(max(0.0, request.arrived_s - (time.perf_counter() - start_s)))
            lag_s = time.perf_counter() - start_s - request.arrived_s
            answer = await _ask(http, request.model, number)
            return {**answer, "latency_s": answer["latency_s"] + lag_s}

        return await asyncio.gather(*(one(number, request) for number, request in enumerate(trace)))


# -- simulated -------------------------------------------------------------------------------------------------------


def _simulate(trace: Sequence[Request], alone: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    models = [_model(model, alone[model.id]["compute_s"]) for model in shipped_models() if model.id in _RATES_PER_S]
    free = [replace(request, latency_s=None) for request in trace]  # as they were sent: late ones are answered
    outcomes = simulate_system(System(models=models), free, "vireo")
    rng = Random(11)
    watts = {model.id: alone[model.id]["joules"] / alone[model.id]["compute_s"] for model in models}
    return [
        {
            "latency_s": one.latency_s + rng.choice(alone[one.model]["ways_s"]),
            "joules": one.joules / next(model.watts for model in models if model.id == one.model) * watts[one.model],
        }
        for one in outcomes
    ]


def _model(model: ServedModel, compute_s: float) -> ServedModel:
    """With the point that is served, and costs scaled to what it took alone."""
    wanted = ",".join(f"{key}={value:g}" for key, value in sorted(_SETTINGS[model.id].items()))
    point = next(point for point in model.points if point.name == wanted)
    factor = compute_s / model.alone_s(point)
    scaled = replace(point, step_s=_times(point.step_s, factor), decode_s=factor * point.decode_s)
    return replace(model, points=(scaled,), stage_s=tuple(_times(stage_s, factor) for stage_s in model.stage_s))


def _times(seconds: Seconds, factor: float) -> Seconds:
    return Seconds({rows: factor * one for rows, one in seconds.by_rows.items()})


# -- both ------------------------------------------------------------------------------------------------------------


def _rows(
    name: str, trace: Sequence[Request], served: Sequence[dict[str, Any]], simulated: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    places = [place for place, request in enumerate(trace) if request.model == name]
    sides = [_figures([side[place] for place in places], _LATENCY_S[name]) for side in (served, simulated)]
    return [
        {
            "model": name,
            "figure": figure,
            "served": sides[0][figure],
            "simulated": sides[1][figure],
            "off": sides[1][figure] / sides[0][figure] - 1.0 if sides[0][figure] else None,
        }
        for figure in sides[0]
    ]


def _figures(answers: Sequence[dict[str, Any]], latency_s: float) -> dict[str, float]:
    fine = [answer for answer in answers if "error" not in answer]
    times = sorted(answer["latency_s"] for answer in fine)
    return {
        "requests": float(len(answers)),
        "answered": float(len(fine)),
        "in budget": sum(time_s <= latency_s for time_s in times) / len(answers),
        "mean s": statistics.fmean(times),
        "p50 s": percentile(times, 0.5) or 0.0,
        "p99 s": percentile(times, 0.99) or 0.0,
        "joules": sum(answer["joules"] for answer in fine),
    }


def lines(document: dict[str, Any]) -> list[str]:
    """A table."""
    rows = [
        (
            f"{row['model']}: {row['figure']}",
            f"{row['served']:.4g}",
            f"{row['simulated']:.4g}",
            "-" if row["off"] is None else f"{row['off']:+.1%}",
        )
        for row in document["rows"]
    ]
    alone = "; ".join(
        f"{name} {1e3 * one['latency_s']:.1f} ms, of which {1e3 * one['compute_s']:.1f} ms in the engine"
        for name, one in document["alone"].items()
    )
    return [
        f"{document['num_requests']} requests in {document['seconds']:g} s. Alone: {alone}.",
        "",
        *markdown_table(("figure", "served", "simulated", "off by"), rows).splitlines(),
    ]
