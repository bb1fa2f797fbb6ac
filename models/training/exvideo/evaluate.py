"""How well exvideo-nano keeps what the first frame shows, and how it moves: base, extension and what they compete with.

    python -m models.training.exvideo.evaluate models/checkpoints/exvideo-nano [--only SECTION ...]

Writes evaluation.json beside the weights, section by section, and strips.png for the card. First frames are of seeds
and, in part, of combinations of colour and shape that the denoiser was never trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from models.operating_points import share_quality
from models.training import calibration
from models.training.autoencoder import encode
from models.training.exvideo.autoencoder import decode, psnr, to_pixels
from models.training.exvideo.export import Parts, load_parts, load_statistics
from models.training.exvideo.judge import Verdict, judge
from models.training.exvideo.sampling import Start, sample, sample_windows, to_uint8
from models.training.exvideo.scenes import FRAMES, HELD_OUT, LONG_FRAMES, Scene, render, sample_scene
from models.training.vdit.clips import Clip

EVALUATION_FILE = "evaluation.json"
FIRST_SEED = 4_242
STEPS = 12
GUIDANCE = 1.0
LONG_GUIDANCE = 2.0
"""As in ExVideo's recipe."""
AIM = 0.95
"""Share of extended clips that keep colour and shape in all frames."""
STARTS = (700.0, 100.0, 20.0, 5.0)
_TOGETHER = 16
_SHOWN = tuple(range(0, LONG_FRAMES, 3))
_STRIPS = 5


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--only", nargs="*", choices=sorted(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--count", type=int, default=64, help="clips of each row")
    args = parser.parse_args()
    with calibration.threads(1):
        for section in args.only:
            evaluate(args.checkpoint, section, args.count)
    if {"extended", "unextended", "windows"} <= set(args.only):
        draw_strips(args.checkpoint)


def evaluate(checkpoint: Path, section: str, count: int) -> Any:
    """Measure one section and put it into evaluation.json. Returns it."""
    found = SECTIONS[section](checkpoint, count)
    path = checkpoint / EVALUATION_FILE
    report = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    hardware = msgspec.to_builtins(calibration.hardware(torch.device("cpu")))
    report |= {"hardware": hardware, "first_seed": FIRST_SEED, section: found}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return found


def held_out_scenes(count: int, seed: int = FIRST_SEED, *, is_long: bool = False) -> list[Scene]:
    """New ones, a third of them of combinations that the denoiser never saw."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, held_out=number % 3 == 0, is_long=is_long) for number in range(count)]


def firsts(scenes: Sequence[Scene]) -> Clip:
    """Their first frames."""
    return np.concatenate([render(scene, 1) for scene in scenes])


def figures(clips: Sequence[Clip], scenes: Sequence[Scene]) -> dict[str, Any]:
    """What the judge says of clips that should show ``scenes``."""
    return summed(
        [judge(clip, one.colour, one.shape, one.speed) for clip, one in zip(clips, scenes, strict=True)], scenes
    )


def summed(verdicts: Sequence[Verdict], scenes: Sequence[Scene]) -> dict[str, Any]:
    """Shares and means over clips; ``new``: of combinations that were never trained on."""
    count = len(verdicts)
    moved = [(one.speed, scene.speed) for one, scene in zip(verdicts, scenes, strict=True) if not math.isnan(one.speed)]
    new = [one.is_kept for one, scene in zip(verdicts, scenes, strict=True) if (scene.colour, scene.shape) in HELD_OUT]
    kept = _mean([one.is_kept for one in verdicts])
    return {
        "count": count,
        "kept": msgspec.to_builtins(share_quality(kept, count)),
        "kept_of_new": _mean(new),
        "frames_kept": _mean([one.kept for one in verdicts]),
        "smooth": msgspec.to_builtins(share_quality(_mean([one.is_smooth for one in verdicts]), count)),
        "turns_only_at_walls": _mean([one.turns_only_at_walls for one in verdicts]),
        "keeps_moving": _mean([one.keeps_moving for one in verdicts]),
        "right": _mean([one.is_kept and one.is_smooth for one in verdicts]),
        "roughness": _mean([one.roughness for one in verdicts if not math.isnan(one.roughness)]),
        "speed_of_asked": _mean([measured / asked for measured, asked in moved]),
        "speed_correlation": round(float(np.corrcoef(np.array(moved).T)[0, 1]), 4) if len(moved) > 2 else None,
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else 0.0


def drawn(make: Callable[[Clip, Sequence[int], int], list[Clip]], scenes: Sequence[Scene]) -> tuple[list[Clip], float]:
    """Clips of ``scenes``, some together, and seconds a clip."""
    clips: list[Clip] = []
    began_s = time.perf_counter()
    for first in range(0, len(scenes), _TOGETHER):
        some = scenes[first : first + _TOGETHER]
        clips += make(firsts(some), [scene.motion_bucket_id for scene in some], FIRST_SEED + first)
    return clips, round((time.perf_counter() - began_s) / len(scenes), 3)


def _bounds(checkpoint: Path, count: int) -> dict[str, Any]:
    """What the judge says of rendered clips, and of what the autoencoder makes of them: nothing can be better."""
    parts, scenes = load_parts(checkpoint, is_extended=False), held_out_scenes(count, is_long=True)
    rendered = [render(scene, LONG_FRAMES) for scene in scenes]
    pixels = [to_pixels(torch.from_numpy(clip)) for clip in rendered]
    again = [to_uint8(decode(parts.vae, encode(parts.vae, one), LONG_FRAMES)) for one in pixels]
    return {
        "rendered": figures(rendered, scenes),
        "autoencoder": figures(again, scenes),
        "autoencoder_psnr_db": round(psnr(parts.vae, torch.cat(pixels[:8]), LONG_FRAMES), 2),
    }


def _base(checkpoint: Path, count: int) -> list[dict[str, Any]]:
    """The base at its own length, by steps and guidance."""
    parts, scenes = load_parts(checkpoint, is_extended=False), held_out_scenes(count)
    rows = []
    for steps, guidance in ((5, 1.0), (STEPS, 1.0), (25, 1.0), (5, 2.0), (STEPS, 2.0)):
        clips, seconds = drawn(_made(parts, FRAMES, steps=steps, guidance=guidance), scenes)
        rows.append({"frames": FRAMES, "steps": steps, "guidance": guidance, "seconds_per_clip": seconds})
        rows[-1] |= figures(clips, scenes)
        print(rows[-1], flush=True)
    return rows


def _starts(checkpoint: Path, count: int) -> list[dict[str, Any]]:
    """The base from later starts, from plain noise and from Analytic-Init."""
    parts, scenes, statistics = (
        load_parts(checkpoint, is_extended=False),
        held_out_scenes(count),
        load_statistics(checkpoint),
    )
    rows = []
    for sigma in STARTS:
        for is_analytic in (False, True):
            start = Start(sigma, *statistics) if is_analytic else Start(sigma)
            clips, _ = drawn(_made(parts, FRAMES, steps=STEPS, guidance=GUIDANCE, start=start), scenes)
            rows.append({"start_sigma": sigma, "analytic": is_analytic, "steps": STEPS} | figures(clips, scenes))
            print(rows[-1], flush=True)
    return rows


def _made(parts: Parts, frames: int, **how: Any) -> Callable[[Clip, Sequence[int], int], list[Clip]]:
    return lambda pictures, buckets, seed: sample(parts, pictures, buckets, frames, seed=seed, **how)


def _chained(parts: Parts, **how: Any) -> Callable[[Clip, Sequence[int], int], list[Clip]]:
    return lambda pictures, buckets, seed: sample_windows(
        parts, pictures, buckets, LONG_FRAMES, FRAMES, seed=seed, **how
    )


def _long(name: str) -> Callable[[Path, int], dict[str, Any]]:
    """One way to 40 frames; the first clips are kept for the card."""

    def measure(checkpoint: Path, count: int) -> dict[str, Any]:
        parts = load_parts(checkpoint, is_extended=name == "extended")
        scenes = held_out_scenes(count, is_long=True)
        how = {"steps": STEPS, "guidance": LONG_GUIDANCE}
        make = _chained(parts, **how) if name == "windows" else _made(parts, LONG_FRAMES, **how)
        clips, seconds = drawn(make, scenes)
        np.savez_compressed(checkpoint / f"{name}.npz", clips=np.stack(clips[:_STRIPS]))
        found = {"frames": LONG_FRAMES, **how, "seconds_per_clip": seconds, **figures(clips, scenes)}
        print(name, found, flush=True)
        return found

    return measure


def _strip(clip: Clip) -> Clip:
    return np.concatenate([np.pad(clip[frame], ((1, 1), (1, 1), (0, 0)), constant_values=90) for frame in _SHOWN], 1)


def draw_strips(checkpoint: Path) -> None:
    """For some first frames: rendered truth, extended, un-extended, windows; every third frame. The clips that the
    sections left are removed."""
    files = {name: checkpoint / f"{name}.npz" for name in ("extended", "unextended", "windows")}
    kinds = [np.load(path)["clips"] for path in files.values()]
    blocks = []
    for number, scene in enumerate(held_out_scenes(_STRIPS, is_long=True)):
        blocks += [_strip(clip) for clip in (render(scene, LONG_FRAMES), *(kind[number] for kind in kinds))]
        blocks.append(np.full((4, blocks[-1].shape[1], 3), 255, np.uint8))
    sheet = Image.fromarray(np.concatenate(blocks[:-1]))
    sheet.resize((sheet.width * 3 // 2, sheet.height * 3 // 2), Image.Resampling.BILINEAR).save(
        checkpoint / "strips.png", optimize=True
    )
    for path in files.values():
        path.unlink()


SECTIONS: Mapping[str, Callable[[Path, int], Any]] = {
    "bounds": _bounds,
    "base": _base,
    "starts": _starts,
    "unextended": _long("unextended"),
    "windows": _long("windows"),
    "extended": _long("extended"),
}

if __name__ == "__main__":
    main()
