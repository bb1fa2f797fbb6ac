"""Makes exvideo-nano from nothing: autoencoder, image encoder, latents, base of 8 frames, extension to 40. Nothing is
downloaded.

Each stage that has ended is kept in a folder beside the weights, and the denoisers' state every two hundred steps, so
that an interrupted run goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

from models.contract import OnProgress, Variant
from models.families.exvideo.unet import extend
from models.training import calibration
from models.training.exvideo import autoencoder, denoiser, export, image_encoder, latents
from models.training.exvideo.denoiser import Plan, Windows
from models.training.exvideo.scenes import FRAMES, LONG_FRAMES
from models.training.stages import once, records

LOG_FILE = "training_log.json"
WORK_FOLDER = "training"
STAGES = ("vae", "image_encoder", "base", "extension")


@dataclass(frozen=True)
class Plans:
    """How much of each stage. The usual one takes two and a half hours on one core."""

    autoencoder_steps: int = 1_000
    encoder_steps: int = 650
    clips: int = 1_000
    long_clips: int = 2_400
    base: Plan = field(default_factory=lambda: Plan("base", FRAMES, batch=8, steps=3_000, lr=3e-3))
    extension: Plan = field(
        default_factory=lambda: Plan("extension", LONG_FRAMES, batch=2, steps=4_500, lr=3e-3, sigma_mean=1.8)
    )

    @classmethod
    def of(cls, steps: int | None, seed: int) -> Plans:
        """With so many steps of the base, and of all else in proportion: few only try the path."""
        usual = cls()
        base, extension = replace(usual.base, seed=seed), replace(usual.extension, seed=seed)
        if steps is None:
            return replace(usual, base=base, extension=extension)
        share = steps / base.steps
        return cls(
            max(2, round(usual.autoencoder_steps * share)),
            max(2, round(usual.encoder_steps * share)),
            max(2, round(usual.clips * share)),
            max(2, round(usual.long_clips * share)),
            replace(base, steps=steps),
            replace(extension, steps=max(2, round(extension.steps * share))),
        )


def train_variant(
    variant: Variant,
    out_dir: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[str]:
    """What ``vireo train`` does. Returns: lines about the result.

    Raises: ValueError: not the nano variant.
    """
    if not variant.is_nano:
        raise ValueError(f"{variant.id} cannot be trained here; trainable: exvideo-nano")
    seed += 1
    plans, work = Plans.of(steps, seed), out_dir / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with calibration.threads(1):
        vae = _autoencoder(plans, work, seed, on_progress)
        encoder = _image_encoder(plans, work, seed, on_progress)
        stored, scenes = latents.make(work, vae, plans.clips, on_step=_told(on_progress, "latents"))
        vae.register_to_config(scaling_factor=round(float(1 / stored.std()), 5))
        windows = Windows(stored, scenes, vae, encoder)
        torch.manual_seed(seed)
        base = denoiser.train(work, windows, denoiser.fresh(), plans.base, _told(on_progress, "base"))
        export.save_pipeline(out_dir, base, vae, encoder)
        told = _told(on_progress, "long latents")
        stored, scenes = latents.make(work, vae, plans.long_clips, is_long=True, on_step=told)
        windows, told = Windows(stored, scenes, vae, encoder, is_long=True), _told(on_progress, "extension")
        extended = denoiser.train(work, windows, extended_of(base), plans.extension, told)
    export.save_overlay(out_dir, extended)
    export.save_statistics(out_dir, stored * vae.config.scaling_factor)
    log = {stage: records(work, stage) for stage in STAGES}
    text = json.dumps({"torch": str(torch.__version__), **log}, indent=0, allow_nan=False)
    (out_dir / LOG_FILE).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(work)
    last = {stage: {key: value for one in log[stage] for key, value in one.items()} for stage in STAGES}
    return [
        f"autoencoder: {last['vae']['psnr']:.1f} dB on clips that it never saw",
        f"base: loss {last['base']['at_1.0']:.4f} at noise of 1",
        f"extension: loss {last['extension']['at_1.0']:.4f} at noise of 1",
    ]


def extended_of(base: UNetSpatioTemporalConditionModel) -> UNetSpatioTemporalConditionModel:
    """ExVideo's beginning: it computes what ``base`` does, has more positions, and only its temporal blocks learn."""
    unet = extend(denoiser.fresh().requires_grad_(False), LONG_FRAMES, FRAMES)
    unet.load_state_dict(base.state_dict(), strict=False)
    for parameter in denoiser.temporal_parameters(unet):
        parameter.requires_grad_(True)
    return unet


def _autoencoder(plans: Plans, work: Path, seed: int, on_progress: OnProgress) -> AutoencoderKLTemporalDecoder:
    def make(folder: Path) -> None:
        told = _told(on_progress, "autoencoder")
        autoencoder.train(work, steps=plans.autoencoder_steps, seed=seed, on_step=told).save_pretrained(folder)

    vae: Any = AutoencoderKLTemporalDecoder.from_pretrained(once(work / "vae", make), low_cpu_mem_usage=False)
    return vae.eval().requires_grad_(False)


def _image_encoder(plans: Plans, work: Path, seed: int, on_progress: OnProgress) -> CLIPVisionModelWithProjection:
    def make(folder: Path) -> None:
        told = _told(on_progress, "image encoder")
        image_encoder.train(work, steps=plans.encoder_steps, seed=seed, on_step=told).save_pretrained(folder)

    encoder: Any = CLIPVisionModelWithProjection.from_pretrained(once(work / "image_encoder", make))
    encoder.eval().requires_grad_(False)
    return cast(CLIPVisionModelWithProjection, encoder)


def _told(on_progress: OnProgress, what: str) -> Callable[[int, int], None]:
    return partial(on_progress, what)
