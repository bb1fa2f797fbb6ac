"""How often a checkpoint's clips show what held-out prompts asked for, at each setting, and how far from dense.

    python -m models.training.vdit.evaluate models/checkpoints/vdit-nano --count 60

Prompts have a combination of colour, shape and direction that training never showed. The judge's own accuracy, on
rendered clips and on what the autoencoder makes of them, is written beside: no setting can score above the latter.
Writes evaluation.json and the clips for the card's pictures (samples.npz, not for committing).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from models.contract import Variant
from models.families.vdit.pipeline import VideoPipeline
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.adaspa_config import AdaSpaConfig, searches_for
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.registry import find
from models.training import calibration
from models.training.vdit.clips import Clip, render
from models.training.vdit.judge import Judge, Verdict
from models.training.vdit.nano import FRAMES, LONG_FRAMES
from models.training.vdit.scenes import Scene, sample_scene
from models.training.vdit.vae_stage import to_pixels

SEED = 4_242
TWO_FROM = 1_000
"""First seed of the prompts of two objects."""
BATCH = 10
REPORT = "evaluation.json"
TILES = ("tile:4:4", "tile:3:5", "tile:2:6")
ADASPA = ("adaspa:0.5", "adaspa:0.7")
STUDENT_ADASPA = ("adaspa:0.7",)
ADASPA_BLOCK_TOKENS = 8
"""128 tokens are 16 blocks."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to make a clip. ``twin``: name of the setting that its clips are compared with, frame by frame.

    ``is_compared``: with another in the shares that are right, which takes all prompts; the others get by with a few.
    ``attention``: as requests spell it: "dense", "tile:2:6", "adaspa:0.5".
    """

    name: str
    variant: str
    sampler: str
    num_steps: int
    guidance: float
    attention: str = "dense"
    twin: str | None = None
    frames: int = FRAMES
    is_compared: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A held-out scene, and the seed of its clips at every setting."""

    scene: Scene
    seed: int


@dataclass(frozen=True, kw_only=True)
class Made:
    """Clips of a setting, what was asked for, and what the judge says."""

    asked: Sequence[Asked]
    clips: Sequence[Clip]
    verdicts: Sequence[Verdict]
    seconds: float


def settings(guidance: float, student_guidance: float, masks: Sequence[str] = TILES) -> list[Setting]:
    """Those in the card."""

    def teacher(name: str, sampler: str, steps: int, **more: Any) -> Setting:
        return Setting(name=name, variant="teacher", sampler=sampler, num_steps=steps, **{"guidance": guidance, **more})

    def student(name: str, steps: int, **more: Any) -> Setting:
        return Setting(
            name=name, variant="student", sampler="consistency", num_steps=steps, guidance=student_guidance, **more
        )

    found = [
        teacher("euler 50", "euler_ancestral", 50),
        teacher("ddim 20", "ddim", 20, is_compared=True),
        teacher("ddim 20, no guidance", "ddim", 20, guidance=1.0),
        *(
            teacher(f"ddim 20, {name}", "ddim", 20, attention=name, twin="ddim 20", is_compared=name == ADASPA[-1])
            for name in (*masks, *ADASPA)
        ),
        student("student 4", 4, twin="ddim 20", is_compared=True),
        student("student 8", 8, twin="ddim 20"),
        *(
            student(f"student 4, {name}", 4, attention=name, twin="student 4", is_compared=name == TILES[-1])
            for name in (*masks, *STUDENT_ADASPA)
        ),
        teacher(f"ddim 20, {LONG_FRAMES} frames", "ddim", 20, frames=LONG_FRAMES),
        student(f"student 4, {LONG_FRAMES} frames", 4, frames=LONG_FRAMES),
    ]
    return found


def held_out_scenes(count: int, two: float) -> list[Scene]:
    """The same ones each time."""
    rng = np.random.default_rng(SEED)
    return [sample_scene(rng, two=two, held_out=True) for _ in range(count)]


def held_out_prompts(count: int, two_count: int) -> list[Asked]:
    """Those of one object, and then those of two; fewer of either are the first of more."""
    one, two = held_out_scenes(count, 0.0), held_out_scenes(two_count, 1.0)
    return [
        Asked(scene=scene, seed=begin + number)
        for begin, scenes in ((0, one), (TWO_FROM, two))
        for number, scene in enumerate(scenes)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=200, help="held-out prompts of one object")
    parser.add_argument("--two-count", type=int, default=50, help="held-out prompts of two objects")
    parser.add_argument("--few", type=int, default=4, help="settings that are not compared get one prompt in so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of settings to measure; the others stay as they were")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    evaluate(args.checkpoint, args.count, args.two_count, args.few, args.only)


def evaluate(
    checkpoint: Path, count: int, two_count: int, few: int = 1, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write evaluation.json and samples.npz into ``checkpoint``. Returns what the former holds.

    With ``only``, what that file says of other settings stays.
    """
    variant = find("vdit-nano")[1].with_weights(checkpoint)
    judge = Judge.load(checkpoint / "judge")
    every, some = held_out_prompts(count, two_count), held_out_prompts(-(-count // few), -(-two_count // few))
    hardware = msgspec.to_builtins(calibration.hardware(torch.device("cpu")))
    report: dict[str, Any] = {"settings": {}}
    if only and (checkpoint / REPORT).is_file():
        report = json.loads((checkpoint / REPORT).read_text(encoding="utf-8"))
    report |= {"seed": SEED, "frames": FRAMES, "hardware": hardware}
    made: dict[str, Made] = {}
    variants: dict[str, VideoPipeline] = {}
    for setting in settings(variant.io.default_guidance, 1.0):
        if (only and setting.name not in only) or not (checkpoint / setting.variant).is_dir():
            continue
        if setting.variant not in variants:
            variants[setting.variant] = VideoPipeline.load(variant, setting.variant)
        pipeline = variants[setting.variant]
        if "bounds" not in report:
            report["bounds"] = bounds(pipeline, judge, [one.scene for one in every])
        made[setting.name] = run(pipeline, judge, setting, every if setting.is_compared else some)
        report["settings"][setting.name] = _summary(setting, made) | cost(pipeline, setting)
        print(setting.name, json.dumps(report["settings"][setting.name]), flush=True)
        (checkpoint / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    keep = {name: np.stack(one.clips) for name, one in made.items()}
    np.savez_compressed(checkpoint / "samples.npz", **keep)  # type: ignore[arg-type]
    return report


def run(pipeline: VideoPipeline, judge: Judge, setting: Setting, asked: Sequence[Asked]) -> Made:
    """Make a clip of each scene."""
    clips: list[Clip] = []
    started_s = time.perf_counter()
    for first in range(0, len(asked), BATCH):
        some = asked[first : first + BATCH]
        latents = pipeline.generate(
            [one.scene.prompt() for one in some],
            frames=setting.frames,
            sampler=setting.sampler,
            num_steps=setting.num_steps,
            guidance=setting.guidance,
            seeds=[one.seed for one in some],
            attention=make_attention(setting.attention, pipeline.variant, setting.num_steps, setting.frames),
        )
        clips += [pipeline.decode(one[None]) for one in latents]
    seconds = time.perf_counter() - started_s
    verdicts = judge.verdicts(clips, [one.scene for one in asked])
    return Made(asked=asked, clips=clips, verdicts=verdicts, seconds=seconds)


def make_attention(name: str, variant: Variant, num_steps: int, frames: int = FRAMES) -> SelfAttention:
    """By the names that a setting has."""
    kind, _, rest = name.partition(":")
    if kind == "tile":
        return TileAttention([TileMask.parse(rest)] * variant.config["num_layers"], variant.io.grid(frames))
    if kind == "adaspa":
        return AdaSpaAttention(
            AdaSpaConfig(sparsity=float(rest), search_steps=searches_for(num_steps), block_tokens=ADASPA_BLOCK_TOKENS)
        )
    return DENSE


def cost(pipeline: VideoPipeline, setting: Setting, clips: int = 3) -> dict[str, float]:
    """Seconds of a step and of the rest, of one clip alone; the least of some."""
    prompt = held_out_scenes(1, 0.0)[0].prompt()
    steps_s, fixed_s = [], []
    for seed in range(clips):
        started_s = time.perf_counter()
        latents = pipeline.generate(
            [prompt],
            frames=setting.frames,
            sampler=setting.sampler,
            num_steps=setting.num_steps,
            guidance=setting.guidance,
            seeds=[seed],
            attention=make_attention(setting.attention, pipeline.variant, setting.num_steps, setting.frames),
        )
        made_s = time.perf_counter()
        pipeline.decode(latents)
        steps_s.append((made_s - started_s) / setting.num_steps)
        fixed_s.append(time.perf_counter() - made_s)
    return {"step_s": round(min(steps_s), 5), "fixed_s": round(min(fixed_s), 5)}


def bounds(pipeline: VideoPipeline, judge: Judge, scenes: Sequence[Scene]) -> dict[str, Any]:
    """What the judge says of the same scenes rendered, and of those encoded and decoded again."""
    rng = np.random.default_rng(SEED)
    rendered = [render(scene, FRAMES, rng) for scene in scenes]
    again = [_through_vae(pipeline, clip) for clip in rendered]
    return {
        "rendered": _shares(scenes, judge.verdicts(rendered, scenes)),
        "autoencoder": _shares(scenes, judge.verdicts(again, scenes)),
        "autoencoder_psnr_db": _mean(map(psnr, again, rendered)),
    }


@torch.inference_mode()
def _through_vae(pipeline: VideoPipeline, clip: Clip) -> Clip:
    latents: Tensor = pipeline.vae.encode(to_pixels(torch.from_numpy(clip))[None]).mode()
    return pipeline.decode(latents * pipeline.vae.config.scale_factor)


def _summary(setting: Setting, made: Mapping[str, Made]) -> dict[str, Any]:
    one = made[setting.name]
    found: dict[str, Any] = {
        "variant": setting.variant,
        "sampler": setting.sampler,
        "num_steps": setting.num_steps,
        "guidance": setting.guidance,
        "attention": setting.attention,
        "frames": setting.frames,
        **_shares([asked.scene for asked in one.asked], one.verdicts),
        "seconds_per_clip": round(one.seconds / len(one.clips), 3),
    }
    if setting.twin in made:
        found["twin"] = setting.twin
        found["psnr_to_twin_db"] = _mean(_decibels_between(one, made[str(setting.twin)]))
    return found


def _decibels_between(one: Made, twin: Made) -> list[float]:
    """Of the clips that both made."""
    there = {asked.seed: clip for asked, clip in zip(twin.asked, twin.clips, strict=True)}
    pairs = zip(one.asked, one.clips, strict=True)
    return [psnr(clip, there[asked.seed]) for asked, clip in pairs if asked.seed in there]


def _shares(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Means over the prompts of one object and over those of two."""
    found: dict[str, Any] = {}
    for number, name in ((1, "one_object"), (2, "two_objects")):
        chosen = [verdict for scene, verdict in zip(scenes, verdicts, strict=True) if len(scene.movers) == number]
        if chosen:
            found[name] = {"count": len(chosen), **{part: _mean(map(get, chosen)) for part, get in _PARTS.items()}}
    return found


_PARTS: Mapping[str, Callable[[Verdict], float]] = {
    "right": lambda one: one.is_right,
    "colour": lambda one: one.colour,
    "shape": lambda one: one.shape,
    "direction": lambda one: one.direction,
    "background": lambda one: one.is_background_right,
}


def psnr(clip: Clip, other: Clip) -> float:
    """Decibels between uint8 clips; 99 where they are equal."""
    error = float(np.square(clip.astype(np.float32) - other).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255.0**2 / error))


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return round(sum(listed) / len(listed), 4)


if __name__ == "__main__":
    main()
