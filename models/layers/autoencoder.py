"""The autoencoder of a latent model: a folder ``vae`` as diffusers writes it, read exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoint import load_into, load_official
from models.files import read_json

_CONFIG, _FILE = "vae/config.json", "vae/diffusion_pytorch_model.safetensors"
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention in autoencoders that were published before 2023."""


def autoencoder(config: Mapping[str, Any]) -> AutoencoderKL:
    """With fresh weights."""
    blocks = len(config["block_out_channels"])
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks}
    vae: AutoencoderKL = AutoencoderKL.from_config({**kinds, **config})
    return vae


def read_autoencoder(folder: Path, needed: Mapping[str, Any], owner: str) -> AutoencoderKL:
    """In float32. ``needed``: of its configuration, what ``owner`` was trained with.

    Raises: ValueError: it is missing, damaged or another one.
    """
    path = folder / _CONFIG
    read = read_json(path)
    for name, value in needed.items():
        if read.setdefault(name, value) != value:
            raise ValueError(f"{path}: {name} is {read[name]}; {owner} needs {value}")
    with torch.device("meta"):
        vae = autoencoder(read)
    load_into(vae, {_current(name): tensor.float() for name, tensor in read_file(folder / _FILE).items()})
    return vae


def save_autoencoder(vae: AutoencoderKL, folder: Path) -> None:
    """Write ``vae`` into a folder."""
    (folder / "vae").mkdir()
    (folder / _CONFIG).write_text(json.dumps(dict(vae.config), indent=1), "utf-8")
    save_file(vae.state_dict(), folder / _FILE)


def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as a sampler leaves them to pictures (B, H, W, 3), uint8."""
    pixels = vae.decode(latents.float() / vae.config.scaling_factor, return_dict=False)[0]
    pictures: Tensor = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return pictures


def only_file(folder: Path) -> Path:
    """The one file of weights. Raises: ValueError: there is none, or there are more."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".pt")]
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise ValueError(f"{folder} needs one .safetensors or .pt file with the transformer; it has {found}")
    return files[0]


def read_file(path: Path) -> dict[str, Tensor]:
    """Raises: ValueError: missing or damaged."""
    if path.suffix == ".pt":
        return load_official(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from None


def _current(name: str) -> str:
    return ".".join(_OLD_NAMES.get(part, part) for part in name.split("."))
