"""The folder as SVD is published: a pipeline of diffusers, in half precision, and ExVideo's overlay beside it."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from models.families.exvideo.folder import CONTRAST_KEY
from models.families.exvideo.overlay import overlay_of, read_overlay
from models.families.exvideo.shapes import OVERLAY_FILES, STATISTICS_FILE
from models.families.exvideo.unet import extend
from models.training.exvideo.denoiser import SIGMA_MAX, SIGMA_MIN
from models.training.exvideo.image_encoder import feature_extractor
from models.training.exvideo.scenes import LONG_FRAMES


@dataclass(frozen=True, slots=True)
class Parts:
    """What a clip is made with."""

    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder
    encoder: CLIPVisionModelWithProjection


def scheduler(sigma_max: float = SIGMA_MAX) -> EulerDiscreteScheduler:
    """As published with SVD, from another first noise level if given."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        use_karras_sigmas=True, timestep_spacing="leading", timestep_type="continuous", steps_offset=1,
        sigma_min=SIGMA_MIN, sigma_max=sigma_max,
    )  # fmt: skip


def save_pipeline(
    folder: Path,
    unet: UNetSpatioTemporalConditionModel,
    vae: AutoencoderKLTemporalDecoder,
    encoder: CLIPVisionModelWithProjection,
) -> None:
    """Write everything but the overlay."""
    parts: list[Any] = [copy.deepcopy(one).half() for one in (vae, encoder, unet)]
    pipeline = StableVideoDiffusionPipeline(*parts, scheduler=scheduler(), feature_extractor=feature_extractor())
    pipeline.save_pretrained(folder)
    for path in sorted(folder.rglob("*.json")):
        path.write_text(json.dumps(_published(json.loads(path.read_text("utf-8"))), indent=1) + "\n", "utf-8")


def _published(config: dict[str, Any]) -> dict[str, Any]:
    """Without where the parts were read from, and with the name that every installation has for the extractor."""
    known = {key: value for key, value in config.items() if key != "_name_or_path"}
    if "feature_extractor" in known:
        known = {CONTRAST_KEY: 0.0, **known}
        known["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    if str(known.get("image_processor_type", "")).startswith("CLIPImageProcessor"):
        known["image_processor_type"] = "CLIPImageProcessor"
    return known


def save_statistics(folder: Path, latents: Tensor) -> None:
    """Mean of scaled latents (N, T, C, h, w) over clips, and the mean of their variances: what Analytic-Init starts
    from."""
    clips = latents[:, :LONG_FRAMES].float()
    found = {"Expectation_x_0": clips.mean(0), "trCov_d": clips.var(0, correction=0).mean()}
    save_file(found, folder / STATISTICS_FILE)


def load_statistics(folder: Path) -> tuple[Tensor, float]:
    """Mean (T, C, h, w) and mean variance."""
    found = load_file(folder / STATISTICS_FILE)
    return found["Expectation_x_0"], float(found["trCov_d"])


def save_overlay(folder: Path, extended: UNetSpatioTemporalConditionModel) -> None:
    """The extended blocks, in half precision, by the published names."""
    found = {name: one.half() for name, one in overlay_of(extended).items()}
    save_file(found, folder / OVERLAY_FILES[0])


def load_parts(folder: Path, *, is_extended: bool) -> Parts:
    """What a clip is made with, in float32; of an extended model, the base as it was."""
    unet: Any = UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    unet = unet.float()
    if is_extended:
        unet = extend(unet, LONG_FRAMES)
        unet.load_state_dict(read_overlay(folder / OVERLAY_FILES[0], unet), strict=False)
    vae: Any = AutoencoderKLTemporalDecoder.from_pretrained(folder / "vae", low_cpu_mem_usage=False)
    encoder: Any = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    return Parts(unet.float().eval(), vae.float().eval(), encoder.float().eval())
