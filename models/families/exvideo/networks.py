"""The networks of SVD, read from a folder exactly, extended where they are to be, or made with random weights."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from models.checkpoint import load_into, load_pretrained
from models.contract import OnProgress, Variant
from models.families.exvideo.folder import CONFIGS, CONTRAST_KEY, PIPELINE, found, read_header
from models.families.exvideo.latents import AnalyticInit
from models.families.exvideo.overlay import check_overlay, overlay_file, overlay_of, read_overlay
from models.families.exvideo.picture import CLIP_MEAN, CLIP_STD, clip_inputs
from models.families.exvideo.shapes import OVERLAY_FILES, STATISTICS_FILE, WEIGHTS_FILES
from models.families.exvideo.unet import extend
from models.files import read_json

_FEATURES = "feature_extractor/preprocessor_config.json"
_INDEX = {
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "unet": ("diffusers", "UNetSpatioTemporalConditionModel"),
    "vae": ("diffusers", "AutoencoderKLTemporalDecoder"),
}
"""What ``model_index.json`` says of the parts of a published folder."""


class Networks(nn.Module):
    """``vae`` computes in float32 whatever the others do: SVD's overflows at half precision. ``analytic``: statistics
    for late starts, or None."""

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        analytic: AnalyticInit | None,
    ) -> None:
        super().__init__()
        self.unet, self.vae, self.image_encoder = unet, vae, image_encoder
        self.analytic = analytic

    def embed(self, pixels: Tensor) -> Tensor:
        """What the UNet's cross-attention reads of a first frame (1, 3, H, W) in -1..1: (1, 1, D)."""
        inputs = clip_inputs(pixels).to(self.unet.device, self.image_encoder.dtype)
        embeds: Tensor = self.image_encoder(inputs).image_embeds
        return embeds[:, None]

    def encode(self, pixels: Tensor) -> Tensor:
        """The likeliest latents of a picture (1, 3, H, W), not scaled: (1, C, h, w)."""
        latents: Tensor = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        return latents


def build(variant: Variant, device: str = "cpu", random_weights: bool = False, dtype: str = "float32") -> Networks:
    """Read every network, or draw it.

    Raises: ValueError, OSError: weights that are missing or of another network.
    """
    if random_weights or variant.weights is None:
        return _random(variant).to(device).requires_grad_(False).eval()
    folder, kind = found(variant).weights, getattr(torch, dtype)
    assert folder is not None
    _check_features(folder)
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(variant.config["unet"])
        vae = AutoencoderKLTemporalDecoder.from_config(variant.config["vae"])
    load_into(unet, _read(folder / "unet", kind))
    load_into(vae, _read(folder / "vae", torch.float32))
    if positions := int(variant.config["positions"]):
        _lay_over(extend(unet, positions), folder)
    encoder = load_pretrained(CLIPVisionModelWithProjection, folder / "image_encoder", kind)
    networks = Networks(unet, vae, encoder, _read_statistics(folder))
    return networks.to(device).requires_grad_(False).eval()


def save(networks: Networks, variant: Variant, folder: Path) -> None:
    """Write a folder as ``build`` reads it: SVD's networks, and the extended blocks in a file of their own."""
    for part, file in CONFIGS.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(variant.config[part], indent=1) + "\n", encoding="utf-8")
    index: dict[str, Any] = {"_class_name": PIPELINE, **_INDEX}
    if variant.config["positions"]:
        index[CONTRAST_KEY] = variant.config["contrast"]
    (folder / "model_index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    (folder / _FEATURES).parent.mkdir(exist_ok=True)
    features = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    (folder / _FEATURES).write_text(json.dumps(features) + "\n", encoding="utf-8")
    plain = {name: tensor for name, tensor in networks.unet.state_dict().items() if ".pos_" not in name}
    save_file(plain, folder / "unet" / WEIGHTS_FILES[0], {"format": "pt"})
    save_file(networks.vae.state_dict(), folder / "vae" / WEIGHTS_FILES[0], {"format": "pt"})
    networks.image_encoder.save_pretrained(folder / "image_encoder")
    if variant.config["positions"]:
        save_file(overlay_of(networks.unet), folder / OVERLAY_FILES[0])
    if networks.analytic is not None:
        save_statistics(networks.analytic, folder)


def save_statistics(analytic: AnalyticInit, folder: Path) -> None:
    """Write the file for late starts, with the keys of the official ones."""
    tensors = {"Expectation_x_0": analytic.mean.contiguous(), "trCov_d": torch.tensor(analytic.variance)}
    save_file(tensors, folder / STATISTICS_FILE)


def convert(
    variant: Variant,
    base: Annotated[Path, "Folder of SVD-XT, as diffusers has it."],
    overlay: Annotated[Path, "ExVideo's model.fp16.safetensors."],
    *,
    on_progress: OnProgress,
) -> list[str]:
    """Lay ExVideo's published file over a folder of SVD-XT: check it, and put it there as exvideo.safetensors.

    Raises: ValueError: the folder is not SVD-XT's, or a tensor is missing, left over or of another shape.
    """
    if not variant.config["positions"]:
        raise ValueError(f"{variant.id} is served as it is published; only ExVideo's file has to be laid over it")
    found(variant.with_weights(base))
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel.from_config(variant.config["unet"])
        for path in (base / "unet" / name for name in WEIGHTS_FILES if (base / "unet" / name).is_file()):
            _check_names(path, unet)
        extend(unet, int(variant.config["positions"]))
    check_overlay(overlay, read_header(overlay), unet)
    target = base / OVERLAY_FILES[0]
    part = target.with_suffix(".part")
    shutil.copyfile(overlay, part)
    os.replace(part, target)
    return [
        f"written to {target}: {len(read_header(target))} tensors",
        f"serve it: vireo up --model {variant.id}={base}",
    ]


def _check_names(path: Path, unet: UNetSpatioTemporalConditionModel) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    if (given := read_header(path)) != expected:
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise ValueError(f"{path} is not SVD-XT's UNet: {len(wrong)} tensors differ, of them {', '.join(wrong[:3])}")


def _lay_over(unet: UNetSpatioTemporalConditionModel, folder: Path) -> None:
    path = overlay_file(folder)
    if path is None:
        names = " or ".join(OVERLAY_FILES)
        raise ValueError(f"{folder} has no {names}; lay ExVideo's file over it (vireo convert exvideo), or serve SVD")
    unet.load_state_dict(read_overlay(path, unet), strict=False, assign=True)


def _read(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{folder} has no {WEIGHTS_FILES[0]}")
    return {name: tensor.to(dtype) for name, tensor in _tensors(path).items()}


def _read_statistics(folder: Path) -> AnalyticInit | None:
    path = folder / STATISTICS_FILE
    if not path.is_file():
        return None
    tensors = _tensors(path)
    if tensors.keys() != {"Expectation_x_0", "trCov_d"} or tensors["trCov_d"].numel() != 1:
        raise ValueError(f"{path} holds {', '.join(sorted(tensors))}; it must hold Expectation_x_0 and one trCov_d")
    mean = tensors["Expectation_x_0"].float()
    if mean.ndim not in (4, 5) or (mean.ndim == 5 and len(mean) != 1):
        raise ValueError(f"{path}: Expectation_x_0 is {tuple(mean.shape)}, not frames, channels, rows and columns")
    variance = float(tensors["trCov_d"])
    if not (math.isfinite(variance) and variance >= 0 and bool(mean.isfinite().all())):
        raise ValueError(f"{path}: trCov_d is {variance}, or a mean is not finite; write it again")
    return AnalyticInit(mean.reshape(mean.shape[-4:]), variance)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _check_features(folder: Path) -> None:
    """CLIP's mean and deviation are the only thing in that file that SVD's pipeline uses."""
    path = folder / _FEATURES
    read = read_json(path)
    for name, needed in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        given = read.get(name, needed)
        if max(abs(one - other) for one, other in zip(given, needed, strict=True)) > 1e-6:
            raise ValueError(f"{path}: {name} is {given}; SVD's image encoder needs {list(needed)}")


def _random(variant: Variant) -> Networks:
    config: Any = variant.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel.from_config(config["unet"])
        vae = AutoencoderKLTemporalDecoder.from_config(config["vae"])
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config["image_encoder"]))
        if config["positions"]:
            extend(unet, config["positions"])
        shape = tuple(config["analytic_init"])
        analytic = AnalyticInit(0.3 * torch.randn(shape), 0.8) if shape else None
    return Networks(unet, vae, encoder, analytic)
