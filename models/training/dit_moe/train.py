"""Makes dit-moe-nano from nothing: autoencoder, judge, latents, transformer. Nothing is downloaded.

Each stage that has ended is kept in a folder beside the weights, and the transformer's state every hundred steps, so
that an interrupted run goes on and ends with the same weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from models.checkpoint import save_weights
from models.contract import OnProgress, Variant
from models.training import calibration
from models.training.dit_moe import autoencoder, judge, latents, transformer
from models.training.dit_moe.transformer import TrainConfig
from models.training.stages import once, records

LOG_FILE = "training_log.json"
WORK_FOLDER = "training"
STAGES = ("vae", "judge", "transformer")


@dataclass(frozen=True)
class Plan:
    """How much of each stage. The usual one takes an hour and a half on one core."""

    autoencoder_steps: int = 900
    judge_steps: int = 1_200
    pictures: int = 40_000
    transformer: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def of(cls, steps: int | None, seed: int) -> Plan:
        """With so many steps of the transformer, and of all else in proportion: few only try the path."""
        usual = cls(transformer=TrainConfig(seed=seed))
        if steps is None:
            return usual
        share = steps / usual.transformer.steps
        return cls(
            autoencoder_steps=max(2, round(usual.autoencoder_steps * share)),
            judge_steps=max(2, round(usual.judge_steps * share)),
            pictures=max(2 * transformer.HELD_BACK, round(usual.pictures * share)),
            transformer=replace(usual.transformer, steps=steps),
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

    Raises: ValueError: not the nano variant, or as ``transformer.train``.
    """
    if not variant.is_nano:
        raise ValueError(f"{variant.id} cannot be trained here (needs ImageNet); trainable: dit-moe-nano")
    seed += 1  # pictures of lower seeds are for measuring
    plan, work = Plan.of(steps, seed), out_dir / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with calibration.threads(1):
        vae = _autoencoder(plan, work, seed, on_progress)
        _judge(plan, work, seed, on_progress)
        pictures, labels = latents.make(work / "latents", vae, plan.pictures, _told(on_progress, "latents"))
        state = transformer.train(work, pictures, labels, plan.transformer, on_step=_told(on_progress, "transformer"))
    save_weights({name: one.half() for name, one in state.items()}, out_dir, {"model": variant.id, "seed": str(seed)})
    save_autoencoder(vae, out_dir / "vae")
    shutil.copytree(work / "judge", out_dir / "judge", dirs_exist_ok=True)
    log = {stage: records(work, stage) for stage in STAGES}
    text = json.dumps({"torch": str(torch.__version__), **log}, indent=0, allow_nan=False)
    (out_dir / LOG_FILE).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(work)
    last = {stage: {key: value for one in log[stage] for key, value in one.items()} for stage in STAGES}
    return [
        f"autoencoder: {last['vae']['psnr']:.1f} dB on pictures that it never saw",
        f"judge: right on {last['judge']['right']:.1%} of pictures in fonts that it never saw",
        f"transformer: loss {last['transformer']['held_back']:.4f} on latents that it never saw",
    ]


def save_autoencoder(vae: AutoencoderKL, folder: Path) -> None:
    """In half precision, as diffusers reads it; ``vae`` stays as it is."""
    copy = AutoencoderKL.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    copy.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _autoencoder(plan: Plan, work: Path, seed: int, on_progress: OnProgress) -> AutoencoderKL:
    def make(folder: Path) -> None:
        told = _told(on_progress, "autoencoder")
        autoencoder.train(work, steps=plan.autoencoder_steps, seed=seed, on_step=told).save_pretrained(folder)

    vae: Any = AutoencoderKL.from_pretrained(once(work / "vae", make), low_cpu_mem_usage=False)
    return vae.eval().requires_grad_(False)


def _judge(plan: Plan, work: Path, seed: int, on_progress: OnProgress) -> None:
    def make(folder: Path) -> None:
        judge.train(work, steps=plan.judge_steps, seed=seed, on_step=_told(on_progress, "judge")).save(folder)

    once(work / "judge", make)


def _told(on_progress: OnProgress, what: str) -> Callable[[int, int], None]:
    return partial(on_progress, what)
