"""Part of bench-moe: what grouping jobs by experts saves where one of two networks has room on the device.

Real: sixteen jobs on the host's own engine, two networks with random weights in files, of which one is in memory; each
side makes the same jobs, in turn, and must come to the same. Simulated: random arrivals of three tenants with deadlines
on the virtual clock, where one swap is as long as so many steps.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from models.io import ImageRequest
from models.methods.experts.residency import Residency, mapped
from schedulers.kernel import Kernel
from schedulers.lab.phases import random_jobs, replay
from schedulers.policies.denoising import DenoisingConfig, denoising
from schedulers.policies.experts import denoising_with_experts
from serving.replica.job.base import JobInput
from tests.support.two_experts import EARLY, LATE, TwoExpertRunner, engine_of, make_all, network

_SIDES: dict[str, Callable[[DenoisingConfig], Kernel]] = {"apart": denoising, "grouped": denoising_with_experts}
_NUM_JOBS, _NUM_STEPS, _MAX_BATCH = 16, 10, 4


def measure(*, quick: bool) -> dict[str, Any]:
    """Both halves."""
    return {"real": asyncio.run(_real(quick)), "simulated": _simulated(8 if quick else 40)}


async def _real(quick: bool) -> dict[str, Any]:
    width, depth = (256, 2) if quick else (512, 8)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.safetensors" for name in (EARLY, LATE)}
        for seed, file in enumerate(files.values()):
            save_file(network(width, depth, seed).state_dict(), file)
        size_mb = round(files[EARLY].stat().st_size / 1e6)
        cases = [
            await _case(name, tenants, files, width, depth, 1 if quick else 3)
            for name, tenants in (("one tenant", ("a",)), ("two tenants by turns", ("a", "b")))
        ]
    return {"network_mb": size_mb, "jobs": _NUM_JOBS, "steps": _NUM_STEPS, "max_batch": _MAX_BATCH, "cases": cases}


async def _case(
    name: str, tenants: tuple[str, ...], files: dict[str, Path], width: int, depth: int, repeats: int
) -> dict[str, Any]:
    jobs = {
        f"job-{number}": JobInput(
            request=ImageRequest(width=8, height=8),
            # Of two tenants, one is half-way when the other begins.
            point={"num_inference_steps": _NUM_STEPS if len(tenants) == 1 or number % 2 else _NUM_STEPS // 2},
            seed=number,
            num_steps=_NUM_STEPS if len(tenants) == 1 or number % 2 else _NUM_STEPS // 2,
            tenant=tenants[number % len(tenants)],
        )
        for number in range(_NUM_JOBS)
    }
    seconds: dict[str, list[float]] = {side: [] for side in _SIDES}
    swaps: dict[str, list[int]] = {side: [] for side in _SIDES}
    swap_s: list[float] = []
    outputs: dict[str, Any] = {}
    for _ in range(repeats):
        for side, policy in _SIDES.items():
            runner = TwoExpertRunner(width, depth, num_tokens=8)
            states = {expert: mapped(file) for expert, file in files.items()}
            runner.residency = Residency(network(width, depth, 2), states)
            engine = engine_of(runner)
            await engine.start()
            kernel = policy(DenoisingConfig(max_batch=_MAX_BATCH, max_units=_NUM_JOBS))
            made = await make_all(engine, kernel, jobs)
            await engine.stop()
            seconds[side].append(made.seconds)
            swaps[side].append(runner.residency.swaps)
            swap_s.append(runner.residency.seconds / (runner.residency.swaps + 1))
            outputs[side] = {job_id: each["tokens"] for job_id, each in made.outputs.items()}
    for job_id, tokens in outputs["apart"].items():
        assert torch.allclose(outputs["grouped"][job_id], tokens, rtol=1e-3, atol=1e-4), job_id
    return {
        "case": name,
        "swap_s": round(median(swap_s), 3),
        **{
            side: {"swaps": median(swaps[side]), "seconds": round(median(seconds[side]), 2), "all_swaps": swaps[side]}
            for side in _SIDES
        },
    }


def _simulated(num_traces: int) -> list[dict[str, Any]]:
    """Sums over traces; a step alone takes a second."""
    rows = []
    for swap_s in (1.0, 5.0, 20.0):
        for name, patience in (("loose", (8.0, 24.0)), ("tight", (3.0, 8.0))):
            row: dict[str, Any] = {"swap_s": swap_s, "deadlines": name, "jobs": 16 * num_traces}
            for side, is_grouped in (("apart", False), ("grouped", True)):
                outcomes = [
                    replay(
                        random_jobs(Random(seed), 16, gap_s=7.0, tenants=("a", "b", "c"), patience=patience),
                        swap_s=swap_s,
                        is_grouped=is_grouped,
                    )
                    for seed in range(num_traces)
                ]
                row[side] = {
                    "swaps": sum(one.num_swaps for one in outcomes),
                    "seconds": round(sum(one.seconds for one in outcomes)),
                    "in_time": sum(len(one.in_time) for one in outcomes),
                    "mean_s": round(sum(one.mean_s for one in outcomes) / num_traces, 1),
                }
            rows.append(row)
    return rows


def lines(measured: dict[str, Any]) -> list[str]:
    """The two tables, as Markdown."""
    real = measured["real"]
    found = [
        f"{real['jobs']} jobs, {real['max_batch']} a step, two networks of {real['network_mb']} MB, one in memory:",
        "",
        "| jobs of | swap, s | swaps apart | swaps grouped | seconds apart | seconds grouped |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in real["cases"]:
        apart, grouped = case["apart"], case["grouped"]
        found.append(
            f"| {case['case']} | {case['swap_s']} | {apart['swaps']:g} | {grouped['swaps']:g} | {apart['seconds']} | "
            f"{grouped['seconds']} |"
        )
    found += [
        "",
        "Simulated, three tenants, random arrivals; a swap in steps:",
        "",
        "| swap | deadlines | jobs | swaps apart | grouped | seconds apart | grouped | in time apart | grouped |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in measured["simulated"]:
        apart, grouped = row["apart"], row["grouped"]
        cells = [row["swap_s"], row["deadlines"], row["jobs"]]
        for name in ("swaps", "seconds", "in_time"):
            cells += [apart[name], grouped[name]]
        found.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return found
