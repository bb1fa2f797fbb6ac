"""SVD and ExVideo: clips that go on from a first frame. Free of torch.

A folder is that of Stable Video Diffusion as diffusers writes it, beside whose ``model_index.json`` ExVideo's published
file may lie.
"""

from __future__ import annotations

import io as bytes_io
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from models.contract import Family, Knob, LazyRef, Point, SettingError, Source, Variant
from models.families.exvideo.folder import SVD_LICENCE, clip_io, defaults
from models.families.exvideo.nano import NANO
from models.families.exvideo.published import SCHEDULER, SVD_XT
from models.families.exvideo.schedule import starts_late
from models.families.exvideo.tiny import TINY
from models.identity import CHECKPOINTS
from models.io import ClipIO, ClipRequest

_HERE = "models.families.exvideo"
_TRAINING = "models.training.exvideo"
SHORTEST = 2
"""Frames of a clip: the first one goes in."""


def _svd_xt() -> Variant:
    config = {**SVD_XT, "positions": 0, "contrast": 0.0, "analytic_init": ()}
    return Variant(
        id="svd-xt",
        summary="Stable Video Diffusion XT, 25 frames of 1024x576",
        io=clip_io(config, width=1024, height=576, frames=25, fps=7),
        config=MappingProxyType(config),
        source=Source(
            paper="arXiv:2311.15127",
            url="https://github.com/Stability-AI/generative-models",
            licence=SVD_LICENCE,
        ),
    )


def _exvideo() -> Variant:
    config = {**SVD_XT, "positions": 128, "contrast": 1.2, "analytic_init": ()}
    return Variant(
        id="exvideo-svd-128f",
        summary="ExVideo (an overlay, Apache-2.0) on SVD-XT, whose licence holds: 128 frames of 512x512",
        io=clip_io(config, width=512, height=512, frames=128, fps=30),
        config=MappingProxyType(config),
        source=Source(
            paper="arXiv:2406.14130",
            url="https://github.com/modelscope/DiffSynth-Studio",
            commit="v1.1.0",
            licence=SVD_LICENCE,
        ),
        defaults=defaults(is_extended=True),
    )


def _nano() -> Variant:
    config = {**NANO, "positions": 40, "contrast": 0.0, "analytic_init": (40, 4, 8, 8)}
    return Variant(
        id="exvideo-nano",
        summary="a coloured shape that flies on from a first frame",
        io=replace(clip_io(config, width=32, height=32, frames=8, fps=8), frame_counts=(8, 16, 40)),
        config=MappingProxyType(config),
        source=Source(paper="arXiv:2406.14130", licence="Apache-2.0"),
        defaults=MappingProxyType({"num_inference_steps": 12, "guidance_scale": 2.0}),
        weights=CHECKPOINTS / "exvideo-nano",
        is_nano=True,
    )


def _miniature(name: str, **own: Any) -> Variant:
    config: dict[str, Any] = {**TINY, "scheduler": dict(SCHEDULER), "positions": 0, "contrast": 0.0, **own}
    frames = config["positions"] or config["unet"]["num_frames"]
    return Variant(
        id=f"exvideo-miniature-{name}",
        summary="for checks: random weights",
        io=clip_io(config, width=16, height=16, frames=frames, fps=7),
        config=MappingProxyType(config),
        defaults=defaults(is_extended=bool(config["positions"])),
    )


def check_allowed(variant: Variant, request: ClipRequest, point: Point) -> None:
    """Pass what this variant can do. Raises: SettingError."""
    io: ClipIO = variant.io
    request = io.settled(request)
    grid = io.grid(request.num_frames, (request.width, request.height))
    io.check_sampler("euler", int(point["num_inference_steps"]))
    _check_length(variant.config, grid[0], int(point["window"]))
    if starts_late(variant, point):
        _check_late_start(tuple(variant.config["analytic_init"]), (grid[0], io.latent_channels, *grid[1:]))


def _check_length(config: Mapping[str, Any], frames: int, window: int) -> None:
    longest = config["positions"] or config["unet"]["num_frames"]
    if frames < SHORTEST:
        raise SettingError("num_frames", f"num_frames is {frames}; a clip has at least {SHORTEST}, and begins with one")
    if window and not SHORTEST <= window <= longest:
        raise SettingError("window", f"window is {window}; this model sees {SHORTEST} to {longest} frames at a time")
    if not window and frames > longest:
        raise SettingError(
            "num_frames",
            f"num_frames is {frames}; this model was trained on {longest}: ask for no more, or let it see parts of the "
            f"clip at a time (window={longest})",
        )


def _check_late_start(known: tuple[int, ...], needed: tuple[int, ...]) -> None:
    """A late start needs to know what clips of this size look like on average; for others nobody has measured it."""
    if known and known[1:] == needed[1:] and known[0] >= needed[0]:
        return
    has = f"has some of {known[0]} frames, {known[3]}x{known[2]} latents" if known else "has none"
    raise SettingError(
        "start_sigma",
        f"start_sigma below the highest level needs statistics of {needed[0]} frames, {needed[3]}x{needed[2]} latents "
        f"(analytic_init.safetensors); this model {has}",
    )


def example(variant: Variant, random: np.random.Generator) -> ClipRequest:
    """A clip of the usual length and size that begins with noise."""
    from PIL import Image

    clip: ClipIO = variant.io
    file = bytes_io.BytesIO()
    Image.fromarray(random.integers(0, 256, (clip.height, clip.width, 3), np.uint8)).save(file, "PNG")
    return clip.settled(ClipRequest(picture=file.getvalue()))


FAMILY = Family(
    name="exvideo",
    summary="Stable Video Diffusion and ExVideo: clips of up to 128 frames that go on from a first one",
    tasks=("videos",),
    shape="job",
    variants=(_nano(), _svd_xt(), _exvideo()),
    miniatures=(
        _miniature("plain", analytic_init=()),
        _miniature("extended", positions=10, contrast=1.2, analytic_init=(10, 4, 8, 8)),
    ),
    resolve=LazyRef(f"{_HERE}.folder:resolve"),
    knobs=(
        Knob(
            name="num_inference_steps",
            default=25,
            low=1,
            high=200,
            grid=(5, 10, 25, 50),
            is_integer=True,
            summary="Denoising steps on the whole schedule; a later start leaves out the first of them.",
            trades="detail and steady motion",
        ),
        Knob(
            name="guidance_scale",
            default=3.0,
            low=1.0,
            high=10.0,
            grid=(1.0, 2.0, 3.0),
            summary="How much the first frame counts, in SVD rising to this along the clip; 1 halves the cost.",
            trades="faithfulness to the first frame",
        ),
        Knob(
            name="start_sigma",
            default=700.0,
            low=1.0,
            high=700.0,
            grid=(20.0, 100.0, 700.0),
            summary="Noise level to begin at. Below the highest one, from the mean of clips (Analytic-Init).",
            trades="the choice of what moves where",
        ),
        Knob(
            name="motion_bucket_id",
            default=127,
            low=0,
            high=255,
            is_integer=True,
            summary="How much shall move, from 0 to 255.",
        ),
        Knob(
            name="noise_aug_strength",
            default=0.02,
            low=0.0,
            high=1.0,
            summary="Noise on the first frame that the network sees; more of it leaves more room for motion.",
        ),
        Knob(
            name="window",
            default=0,
            low=0,
            high=128,
            is_integer=True,
            summary="Frames that the network sees at a time, each window a fifth further; 0: all. Bounds memory.",
        ),
    ),
    build=LazyRef(f"{_HERE}.networks:build"),
    runner=LazyRef(f"{_HERE}.runner:ExVideoRunner"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.work:work"),
    allowed=LazyRef(f"{_HERE}.family:check_allowed"),
    parts=MappingProxyType(
        {
            "found": LazyRef(f"{_HERE}.folder:found"),
            "recognise": LazyRef(f"{_HERE}.folder:recognise"),
            "weight_files": LazyRef(f"{_HERE}.folder:weight_files"),
            "example": LazyRef(f"{_HERE}.family:example"),
            "save": LazyRef(f"{_HERE}.networks:save"),
            "train": LazyRef(f"{_TRAINING}.train:train_variant"),
            "judge": LazyRef(f"{_TRAINING}.calibrate:judge_of"),
            "card": LazyRef(f"{_TRAINING}.card:write_card"),
            "convert": LazyRef(f"{_HERE}.networks:convert"),
        }
    ),
)
