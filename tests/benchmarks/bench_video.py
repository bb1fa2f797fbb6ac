"""Whole clips at each operating point: many steps or few, dense or sparse, on the nano model and a larger random one.

    make bench-video                     # minutes
    python -m tests.benchmarks.bench_video --quick

Sides alternate, prompt by prompt. Seconds are those of the denoising steps as the engine counts them; decoding is the
same on every side and stands apart. Quality is of the nano model alone: the share of held-out prompts that its judge
finds wholly right. Speed-up is given twice: from fewer steps (against the same attention with the teacher's steps) and
from sparsity (against dense attention with the same steps).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.networks import Networks
from models.families.vdit.runner import VditRunner
from models.families.vdit.transformer import OpenSoraT2V
from models.io import ClipRequest
from models.registry import find
from models.training.vdit.evaluate import held_out_scenes
from models.training.vdit.judge import Judge
from serving.errors import ServingError
from serving.replica.job.base import JobInput
from serving.replica.job.engine import EngineOptions, JobEngine, load_runner
from tests.benchmarks.common import (
    add_output_options,
    markdown_table,
    out_dir,
    print_table,
    provenance,
    write_results,
)
from tests.support.clip_limits import clip_limits

NANO = "vdit-nano"
MID = OpenSoraConfig(
    num_attention_heads=4, attention_head_dim=96, num_layers=4, cross_attention_dim=384, caption_channels=64,
    sample_size=(32, 32), sample_size_t=8, interpolation_scale_thw=(1.0, 1.0, 1.0),
)  # fmt: skip
MID_SIDE = 256
"""256x256 pixels, 29 frames: 8x16x16 = 2,048 tokens."""


@dataclass(frozen=True)
class Side:
    """One operating point."""

    name: str
    variant: str
    sampler: str
    num_steps: int
    attention: str


@dataclass
class Taken:
    """What a side took, clip by clip."""

    denoise_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    held_bytes: list[int] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)
    search_s: list[float] = field(default_factory=list)
    clips: list[Any] = field(default_factory=list)


def sides(few: int, student: str, sampler: str) -> list[Side]:
    """The teacher's 20 steps, and few; each dense and sparse."""
    teacher = [
        Side("20 steps, dense", "teacher", "ddim", 20, "dense"),
        Side("20 steps, tile 2:6", "teacher", "ddim", 20, "tile:2:6"),
        Side("20 steps, AdaSpa 0.8", "teacher", "ddim", 20, "adaspa:0.8"),
        Side("20 steps, RAS 0.5", "teacher", "ddim", 20, "ras:0.5"),
    ]
    return [
        *teacher,
        Side(f"{few} steps, dense", student, sampler, few, "dense"),
        Side(f"{few} steps, tile 2:6", student, sampler, few, "tile:2:6"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12, help="held-out prompts, a clip of each on every side")
    parser.add_argument("--mid-prompts", type=int, default=2, help="clips of the random model on every side")
    parser.add_argument("--threads", type=int, default=1)
    add_output_options(parser)
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.mid_prompts = 1, 0
    torch.set_num_threads(args.threads)
    document: dict[str, Any] = provenance("video") | {"prompts": args.prompts, "threads": args.threads}
    parts = []
    rows = asyncio.run(measure_nano(args.prompts))
    document["nano"] = rows
    parts.append(("nano, 29 frames of 64x64, 128 tokens", rows))
    if args.mid_prompts:
        rows = asyncio.run(measure_mid(args.mid_prompts))
        document["mid"] = rows
        parts.append((f"random weights, width {MID.width}, 29 frames of {MID_SIDE}x{MID_SIDE}, 2,048 tokens", rows))
    text = []
    for title, rows in parts:
        header, cells = list(rows[0]), [list(row.values()) for row in rows]
        print(f"\n{title}")
        print_table(header, cells)
        text.append(f"**{title}**\n\n{markdown_table(header, cells)}")
    write_results(out_dir(args), document, "\n\n".join(text))


async def measure_nano(count: int) -> list[dict[str, Any]]:
    """Rows of the committed checkpoint."""
    family, variant = find(NANO)
    assert variant.weights is not None
    has_student = (variant.weights / "student").is_dir()
    chosen = sides(4, *(("student", "consistency") if has_student else ("teacher", "ddim")))
    options = EngineOptions(family=family, variant=family.part("found")(variant))
    engine = JobEngine(options, partial(load_runner, family.name, variant, "cpu", "float32"))
    scenes = held_out_scenes(count, 0.0)
    guidance_scale = variant.io.default_guidance
    taken = await run_all(engine, chosen, guidance_scale, [scene.prompt() for scene in scenes])
    judge = Judge.load(variant.weights / "judge")
    rows = []
    for row, side in zip(table(chosen, taken), chosen, strict=True):
        verdicts = judge.verdicts(taken[side.name].clips, scenes)
        rows.append({**row, "prompts right": round(float(np.mean([one.is_right for one in verdicts])), 3)})
    return rows


async def measure_mid(count: int) -> list[dict[str, Any]]:
    """Rows of a larger transformer with random weights; it decodes to nothing."""
    torch.manual_seed(0)
    networks = Networks(
        transformers={"teacher": OpenSoraT2V(MID).eval().requires_grad_(False)},
        encode_text=lambda prompts: (torch.zeros(len(prompts), 8, 64), torch.ones(len(prompts), 8, dtype=torch.bool)),
        count_tokens=lambda prompt: 1,
        decode=lambda latents: np.zeros((1, 8, 8, 3), np.uint8),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    bounds = clip_limits(width=MID_SIDE, height=MID_SIDE, latent_channels=MID.in_channels)
    engine = JobEngine(
        EngineOptions(family=bounds.family, variant=bounds.variant), lambda: VditRunner(networks, bounds.variant)
    )
    chosen = sides(4, "teacher", "ddim")
    return table(chosen, await run_all(engine, chosen, 4.0, ["x"] * count))


async def run_all(
    engine: JobEngine, chosen: Sequence[Side], guidance_scale: float, prompts: Sequence[str]
) -> Mapping[str, Taken]:
    """Every prompt on every side, in turns; one clip before them to warm up."""
    await engine.start()
    taken = {side.name: Taken() for side in chosen}
    try:
        await run_one(engine, chosen[0], guidance_scale, prompts[0], 0, Taken())
        for seed, prompt in enumerate(prompts):
            for side in chosen:
                await run_one(engine, side, guidance_scale, prompt, seed, taken[side.name])
    finally:
        await engine.stop()
    return taken


async def run_one(engine: JobEngine, side: Side, guidance_scale: float, prompt: str, seed: int, taken: Taken) -> None:
    """One clip of 29 frames."""
    point = {
        "sampler": side.sampler,
        "num_inference_steps": side.num_steps,
        "attention": side.attention,
        "guidance_scale": guidance_scale if side.variant == "teacher" else 1.0,
    }
    clip = ClipRequest(prompt=prompt, num_frames=29)
    await engine.admit("job", JobInput(request=clip, point=point, seed=seed, num_steps=side.num_steps))
    denoise_s, search_s, sparsity, held = 0.0, 0.0, 0.0, 0
    for _ in range(side.num_steps):
        [outcome] = await engine.run_step(["job"])
        if isinstance(outcome, ServingError):
            raise outcome
        denoise_s += outcome.compute_s
        search_s += outcome.figures["search_s"]
        sparsity += outcome.figures["sparsity"] / side.num_steps
        held = max(held, outcome.held_bytes)
    started_s = asyncio.get_running_loop().time()
    taken.clips.append((await engine.decode("job"))["frames"])
    taken.decode_s.append(asyncio.get_running_loop().time() - started_s)
    engine.release("job")
    taken.denoise_s.append(denoise_s)
    taken.search_s.append(search_s)
    taken.sparsity.append(sparsity)
    taken.held_bytes.append(held)


def table(chosen: Sequence[Side], taken: Mapping[str, Taken]) -> list[dict[str, Any]]:
    """Medians, and speed-ups as medians of the ratios of the same prompt."""
    by_key = {(side.num_steps, side.attention): taken[side.name].denoise_s for side in chosen}
    rows = []
    for side in chosen:
        one = taken[side.name]
        rows.append(
            {
                "side": side.name,
                "denoise s": round(statistics.median(one.denoise_s), 3),
                "decode s": round(statistics.median(one.decode_s), 3),
                "x from steps": ratio(by_key.get((20, side.attention)), one.denoise_s),
                "x from sparsity": ratio(by_key.get((side.num_steps, "dense")), one.denoise_s),
                "attention skipped": round(statistics.median(one.sparsity), 3),
                "search share": round(statistics.median(one.search_s) / statistics.median(one.denoise_s), 3),
                "KiB held": round(max(one.held_bytes) / 1024),
            }
        )
    return rows


def ratio(base: Sequence[float] | None, own: Sequence[float]) -> float | None:
    """Median of how many times faster, prompt by prompt."""
    return None if base is None else round(statistics.median(b / o for b, o in zip(base, own, strict=True)), 2)


if __name__ == "__main__":
    main()
