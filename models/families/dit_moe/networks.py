"""A folder of DiT-MoE into its transformer and autoencoder, or the same with random weights; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.checkpoint import load_into, load_official, save_weights
from models.contract import Variant
from models.families.dit_moe.config import DitMoeConfig
from models.families.dit_moe.network import DitMoe

_VAE_CONFIG, _VAE_FILE = "vae/config.json", "vae/diffusion_pytorch_model.safetensors"
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention in autoencoders that were published before 2023."""


class Networks(nn.Module):
    """``vae`` computes in float32 whatever ``transformer`` does."""

    def __init__(self, transformer: DitMoe, vae: AutoencoderKL) -> None:
        super().__init__()
        self.transformer, self.vae = transformer, vae

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as a sampler leaves them to pictures (B, H, W, 3), uint8."""
        pixels: Tensor = self.vae.decode(latents.float() / self.vae.config.scaling_factor, return_dict=False)[0]
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def build(variant: Variant, device: str = "cpu", random_weights: bool = False, dtype: str = "float32") -> Networks:
    """Read both networks, or draw them.

    Raises: ValueError, OSError: weights that are missing or of another network.
    """
    config, folder = DitMoeConfig(**variant.config["network"]), variant.weights
    if random_weights or folder is None:
        networks = _random(config, variant.config["vae"])
    else:
        with torch.device("meta"):
            networks = Networks(DitMoe(config), _autoencoder(_vae_config(variant, folder)))
        state = _read(_only_file(folder))
        _check_layout(variant, state)
        load_into(networks.transformer, state)
        load_into(networks.vae, {_current(name): tensor.float() for name, tensor in _read(folder / _VAE_FILE).items()})
    networks.transformer.to(getattr(torch, dtype))
    return networks.to(device).requires_grad_(False).eval()


def save(networks: Networks, variant: Variant, folder: Path) -> None:
    """Write a folder as ``build`` reads it."""
    save_weights(networks.transformer.state_dict(), folder)
    (folder / "vae").mkdir()
    (folder / _VAE_CONFIG).write_text(json.dumps(dict(networks.vae.config), indent=1), "utf-8")
    save_file(networks.vae.state_dict(), folder / _VAE_FILE)


def _autoencoder(config: Mapping[str, Any]) -> AutoencoderKL:
    blocks = len(config["block_out_channels"])
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks}
    vae: AutoencoderKL = AutoencoderKL.from_config({**kinds, **config})
    return vae


def _vae_config(variant: Variant, folder: Path) -> dict[str, Any]:
    """Raises: ValueError: missing, or of an autoencoder that the checkpoint was not trained with."""
    path = folder / _VAE_CONFIG
    try:
        read: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({type(error).__name__})") from None
    for name, needed in variant.config["vae"].items():
        if read.setdefault(name, needed) != needed:
            raise ValueError(f"{path}: {name} is {read[name]}; {variant.id} needs {needed}")
    return read


def _only_file(folder: Path) -> Path:
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".pt")]
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise ValueError(f"{folder} needs one .safetensors or .pt file with the transformer; it has {found}")
    return files[0]


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pt":
        return load_official(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from None


def _check_layout(variant: Variant, state: Mapping[str, Tensor]) -> None:
    """By their keys, S and B, which are sampled as DDPM, and XL and G, rectified flows, are told apart."""
    found = "normed" if "blocks.0.attn.Wqkv.weight" in state else "plain"
    if found != (needed := variant.config["network"]["attention"]):
        raise ValueError(
            f"the weights have {found} attention; {variant.id}, which is sampled as {variant.config['process']}, has "
            f"{needed} attention: S and B are plain, XL and G normed"
        )


def _current(name: str) -> str:
    return ".".join(_OLD_NAMES.get(part, part) for part in name.split("."))


def _random(config: DitMoeConfig, vae: Mapping[str, Any]) -> Networks:
    """Unlike a fresh network, one whose blocks and output are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = DitMoe(config)
        for parameter in transformer.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        return Networks(transformer, _autoencoder(vae))
