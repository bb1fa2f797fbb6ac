"""What a folder of SVD holds, by its files of configuration and the headers of its weights. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.contract import Source, Variant
from models.families.exvideo.shapes import OVERLAY_FILES, STATISTICS_FILE, WEIGHTS_FILES, overlay_blocks, vae_stride
from models.files import heads, read_json, read_network_config
from models.folder import MODEL_INDEX, pipeline_of, safetensors_of
from models.io import ClipIO, SamplerRange

PIPELINE = "StableVideoDiffusionPipeline"
SINGLE_FILES = ("svd.safetensors", "svd_xt.safetensors", "svd_xt_1_1.safetensors")
SVD_LICENCE = "LicenseRef-Stability-AI-Community"
CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "image_encoder": "image_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
CONTRAST_KEY = "_vireo_contrast"
"""In ``model_index.json``: what frames are multiplied by once each has the mean and the deviation of the clip; 0: they
are left as they are."""
_PUBLISHED_CONTRAST = 1.2
"""Of ExVideo's own file, whose folders do not say it."""
_LONGEST = 8
"""In windows, a model that is not extended makes clips of so many times its own length."""


def recognise(folder: Path) -> str | None:
    """The name by which ``resolve`` takes a folder, or None: it is not one of SVD."""
    return "svd" if pipeline_of(folder) == PIPELINE else None


def resolve(name: str, folder: Path | None = None) -> Variant:
    """The variant that lies in a folder of SVD, extended if ExVideo's file lies in it, too.

    Raises: ValueError: no folder, or one that holds something else.
    """
    if folder is None:
        raise ValueError(f"exvideo:{name} is whatever a folder holds; give one (--model exvideo:{name}=FOLDER)")
    _check_index(folder)
    config: dict[str, Any] = {part: read_network_config(folder / file) for part, file in CONFIGS.items()}
    overlay = next(iter(_first_of(folder, OVERLAY_FILES)), None)
    config["positions"] = _positions(overlay, config["unet"]) if overlay else 0
    config["contrast"] = _contrast(folder) if overlay else 0.0
    _check(config, folder)
    base = int(config["unet"]["num_frames"])
    side = int(config["unet"].get("sample_size") or 64) * vae_stride(config["vae"])
    frames = int(config["positions"]) or base
    return found(
        Variant(
            id=f"exvideo:{name}",
            summary=f"{'ExVideo' if overlay else 'SVD'} in a folder, {frames} frames from the first one",
            io=clip_io(config, width=side, height=side, frames=frames, fps=30 if overlay else 7),
            config=MappingProxyType(config),
            source=Source(paper="arXiv:2311.15127", licence=SVD_LICENCE),
            defaults=defaults(is_extended=bool(overlay)),
            weights=folder,
        )
    )


def found(variant: Variant) -> Variant:
    """The variant as its folder has it: with the size and length of its statistics for late starts, if there are any.

    Raises: ValueError: no folder of SVD, or statistics that cannot be read.
    """
    folder = variant.weights
    if folder is None:
        raise ValueError(f"{variant.id} has no weights here; give a folder of SVD, as diffusers writes it")
    _check_index(folder)
    _check_weights(folder)
    path = folder / STATISTICS_FILE
    if not path.is_file():
        return replace(variant, config=MappingProxyType({**variant.config, "analytic_init": ()}))
    shape = read_header(path).get("Expectation_x_0", ())
    if len(shape) not in (4, 5):
        raise ValueError(f"{path} has no mean Expectation_x_0 of frames, channels, rows and columns")
    return replace(variant, config=MappingProxyType({**variant.config, "analytic_init": shape[-4:]}))


def weight_files(variant: Variant) -> dict[str, list[Path]]:
    """Of the UNet and the autoencoder, the one file of several precisions that is read; ExVideo's blocks are in memory
    beside those that they replace while they are read."""
    assert variant.weights is not None
    found = {part: _first_of(variant.weights / part, WEIGHTS_FILES) for part in ("unet", "vae")}
    if variant.config["positions"]:
        found["unet"] += _first_of(variant.weights, OVERLAY_FILES)
    return found


def _first_of(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()][:1]


def defaults(*, is_extended: bool) -> Mapping[str, Any]:
    """Settings that a checkpoint was made for, where they are not the family's."""
    return MappingProxyType({"num_inference_steps": 50, "guidance_scale": 2.0} if is_extended else {})


def clip_io(config: Mapping[str, Any], *, width: int, height: int, frames: int, fps: int) -> ClipIO:
    """Any size up to about the usual one, and any length that the network has positions for, or windows of it."""
    stride, extended = vae_stride(config["vae"]), int(config["positions"])
    multiple = stride * 2 ** (len(config["unet"]["block_out_channels"]) - 1)
    longer = max(width, height)
    return ClipIO(
        takes_prompt=False,
        takes_picture=True,
        width=width,
        height=height,
        min_side=2 * multiple,
        max_side=longer // multiple * multiple,
        max_pixels=width * height,
        multiple=multiple,
        frame_counts=(frames,),
        max_frames=extended or _LONGEST * frames,
        fps=fps,
        samplers=MappingProxyType(
            {"euler": SamplerRange(weights="unet", min_steps=1, max_steps=200, default_steps=50 if extended else 25)}
        ),
        default_guidance=2.0 if extended else 3.0,
        max_guidance=10.0,
        latent_channels=int(config["vae"]["latent_channels"]),
        vae_stride=(1, stride, stride),
        patch=(1, 1, 1),
        scale_factor=float(config["vae"]["scaling_factor"]),
    )


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file. Raises: ValueError: it is missing or damaged."""
    return {head.name: head.shape for head in heads(path)}


def _check_index(folder: Path) -> None:
    if not (folder / MODEL_INDEX).is_file():
        single = [name for name in SINGLE_FILES if (folder / name).is_file()]
        if single:
            raise ValueError(
                f"{folder} holds {single[0]}, which is SVD in one file; that form is not read: give the folder that "
                "diffusers has of it, with model_index.json, unet, vae and image_encoder"
            )
        raise ValueError(f"{folder} has no model_index.json; give a folder of SVD, as diffusers writes it")
    if (kind := pipeline_of(folder)) != PIPELINE:
        raise ValueError(f"{folder} is of {kind}; SVD's folders are of {PIPELINE}")


def _check_weights(folder: Path) -> None:
    """Pass a folder each of whose networks has weights of a form that runs no code. Raises: ValueError."""
    for part in ("unet", "vae", "image_encoder"):
        if not safetensors_of(folder / part):
            raise ValueError(f"{folder / part} has no weights (*.safetensors); give a folder of SVD")


def _contrast(folder: Path) -> float:
    """Of an extended model. Raises: ValueError: the folder says something else than a number."""
    said = read_json(folder / MODEL_INDEX).get(CONTRAST_KEY, _PUBLISHED_CONTRAST)
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0.0 <= said <= 10.0:
        raise ValueError(f"{folder / MODEL_INDEX}: {CONTRAST_KEY} is {said!r}; give a number from 0 to 10")
    return float(said)


def _positions(path: Path, unet: Mapping[str, Any]) -> int:
    """How many frames the file has positions for."""
    first = next(iter(overlay_blocks(unet).values()))
    shape = read_header(path).get(f"blocks.{first}.positional_embedding.embeddings")
    if shape is None:
        raise ValueError(f"{path.name} has no blocks.{first}.positional_embedding.embeddings; it is not ExVideo's")
    return shape[0]


def _check(config: Mapping[str, Any], folder: Path) -> None:
    """Pass networks and a schedule that belong together. Raises: ValueError."""
    unet, vae, image, scheduler = (config[part] for part in CONFIGS)
    channels = vae.get("latent_channels")
    for what, given, needed in (
        ("unet in_channels", unet.get("in_channels"), 2 * channels),
        ("unet out_channels", unet.get("out_channels"), channels),
        ("unet cross_attention_dim", unet.get("cross_attention_dim"), image.get("projection_dim")),
        (
            "unet projection_class_embeddings_input_dim",
            unet.get("projection_class_embeddings_input_dim"),
            3 * unet.get("addition_time_embed_dim", 0),
        ),
        ("scheduler _class_name", scheduler.get("_class_name"), "EulerDiscreteScheduler"),
        ("scheduler prediction_type", scheduler.get("prediction_type"), "v_prediction"),
        ("scheduler timestep_type", scheduler.get("timestep_type"), "continuous"),
        ("scheduler use_karras_sigmas", scheduler.get("use_karras_sigmas"), True),
    ):
        if given != needed:
            raise ValueError(f"{folder}: {what} is {given}; SVD needs {needed}: give a folder of SVD")
    for bound in ("sigma_min", "sigma_max"):
        if not isinstance(scheduler.get(bound), int | float):
            raise ValueError(f"{folder}: the scheduler names no {bound}; give a folder of SVD")
    low, high = scheduler["sigma_min"], scheduler["sigma_max"]
    if not 0 < low < high:
        raise ValueError(f"{folder}: sigma_min is {low} and sigma_max {high}; noise falls from the higher to the lower")
