"""More latent channels for an autoencoder that has learnt with fewer: what it knows stays, the new ones start small.

The narrow one learns fast and coarsely; the shapes of moving objects need the wider latents (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.families.vdit.causal_vae import CausalVae

NEW_SCALE = 0.3
"""Of fresh weights that read or write the new channels."""
CERTAIN = -6.0
"""Log-variance that the new channels begin with."""


@torch.no_grad()
def load_narrower(vae: CausalVae, weights: Mapping[str, Tensor]) -> None:
    """Load ``weights`` of an autoencoder of the same shape with at most as many latent channels.

    Raises: ValueError: weights of another model.
    """
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    if state.keys() != weights.keys():
        raise ValueError("weights of another autoencoder: the names differ")
    half, old_half = vae.config.embed_dim, len(weights["post_quant_conv.conv.bias"])
    for name, old in weights.items():
        new = state[name]
        if new.shape == old.shape:
            new.copy_(old)
        elif name.startswith("quant_conv"):
            _moments(new, old, half, old_half)
        elif name.startswith("post_quant_conv"):
            _back(new, old)
        elif name.startswith(("encoder.conv_out", "decoder.conv_in")):
            new.mul_(NEW_SCALE)
            new[tuple(map(slice, old.shape))] = old
        else:
            raise ValueError(f"{name} is {tuple(old.shape)}, not {tuple(new.shape)}: weights of another autoencoder")
    vae.load_state_dict(state)


def _moments(new: Tensor, old: Tensor, half: int, old_half: int) -> None:
    """Means first, then log-variances: each kind grows on its own."""
    if new.ndim == 1:
        new[:half].zero_()
        new[half:].fill_(CERTAIN)
        new[:old_half], new[half : half + old_half] = old[:old_half], old[old_half:]
        return
    new[half:].zero_()
    inputs = old.shape[1]
    for row, old_row in ((0, 0), (half, old_half)):
        new[row : row + old_half].zero_()
        new[row : row + old_half, :inputs] = old[old_row : old_row + old_half]


def _back(new: Tensor, old: Tensor) -> None:
    """The identity for channels that are new."""
    new.zero_()
    if new.ndim > 1:
        index = torch.arange(len(old), len(new))
        new[index, index] = 1.0
    new[tuple(map(slice, old.shape))] = old
