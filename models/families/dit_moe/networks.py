"""A folder of DiT-MoE into its transformer and autoencoder, or the same with random weights; and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.checkpoint import load_into, save_weights
from models.contract import Variant
from models.families.dit_moe.config import DitMoeConfig
from models.families.dit_moe.network import DitMoe
from models.layers.autoencoder import autoencoder, decoded, only_file, read_autoencoder, read_file, save_autoencoder


class Networks(nn.Module):
    """``vae`` computes in float32 whatever ``transformer`` does."""

    def __init__(self, transformer: DitMoe, vae: AutoencoderKL) -> None:
        super().__init__()
        self.transformer, self.vae = transformer, vae

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as a sampler leaves them to pictures (B, H, W, 3), uint8."""
        return decoded(self.vae, latents)


def build(variant: Variant, device: str = "cpu", random_weights: bool = False, dtype: str = "float32") -> Networks:
    """Read both networks, or draw them.

    Raises: ValueError, OSError: weights that are missing or of another network.
    """
    config, folder = DitMoeConfig(**variant.config["network"]), variant.weights
    if random_weights or folder is None:
        networks = _random(config, variant.config["vae"])
    else:
        with torch.device("meta"):
            transformer = DitMoe(config)
        state = read_file(only_file(folder))
        _check_layout(variant, state)
        load_into(transformer, state)
        networks = Networks(transformer, read_autoencoder(folder, variant.config["vae"], variant.id))
    networks.transformer.to(getattr(torch, dtype))
    return networks.to(device).requires_grad_(False).eval()


def save(networks: Networks, variant: Variant, folder: Path) -> None:
    """Write a folder as ``build`` reads it."""
    save_weights(networks.transformer.state_dict(), folder)
    save_autoencoder(networks.vae, folder)


def _check_layout(variant: Variant, state: Mapping[str, Tensor]) -> None:
    """By their keys, S and B, which are sampled as DDPM, and XL and G, rectified flows, are told apart."""
    found = "normed" if "blocks.0.attn.Wqkv.weight" in state else "plain"
    if found != (needed := variant.config["network"]["attention"]):
        raise ValueError(
            f"the weights have {found} attention; {variant.id}, which is sampled as {variant.config['process']}, has "
            f"{needed} attention: S and B are plain, XL and G normed"
        )


def _random(config: DitMoeConfig, vae: Mapping[str, Any]) -> Networks:
    """Unlike a fresh network, one whose blocks and output are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = DitMoe(config)
        for parameter in transformer.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        return Networks(transformer, autoencoder(vae))
