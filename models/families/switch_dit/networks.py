"""A folder of Switch-DiT into its transformer and autoencoder, or the same with random weights; and back."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from models.checkpoint import load_into, save_weights
from models.contract import Variant
from models.families.switch_dit.config import SwitchDitConfig
from models.families.switch_dit.network import SwitchDit, random_network, rename
from models.layers.autoencoder import autoencoder, decoded, only_file, read_autoencoder, read_file, save_autoencoder


class Networks(nn.Module):
    """``vae`` computes in float32 whatever ``transformer`` does."""

    def __init__(self, transformer: SwitchDit, vae: AutoencoderKL) -> None:
        super().__init__()
        self.transformer, self.vae = transformer, vae

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as a sampler leaves them to pictures (B, H, W, 3), uint8."""
        return decoded(self.vae, latents)


def build(variant: Variant, device: str = "cpu", random_weights: bool = False, dtype: str = "float32") -> Networks:
    """Read both networks, or draw them.

    Raises: ValueError, OSError: weights that are missing or of another network.
    """
    config, folder = SwitchDitConfig(**variant.config["network"]), variant.weights
    if random_weights or folder is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = Networks(random_network(config), autoencoder(variant.config["vae"]))
    else:
        with torch.device("meta"):
            transformer = SwitchDit(config)
        load_into(transformer, _as_served(read_file(only_file(folder))))
        networks = Networks(transformer, read_autoencoder(folder, variant.config["vae"], variant.id))
    networks.transformer.to(getattr(torch, dtype))
    return networks.to(device).requires_grad_(False).eval()


def _as_served(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what only training needs."""
    return {new: tensor for name, tensor in state.items() if (new := rename(name)) is not None}


def save(networks: Networks, variant: Variant, folder: Path) -> None:
    """Write a folder as ``build`` reads it."""
    save_weights(networks.transformer.state_dict(), folder)
    save_autoencoder(networks.vae, folder)
