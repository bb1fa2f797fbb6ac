"""One step of a video transformer under region-adaptive sampling.

Legend: B rows of the batch (R for each request, in order), L tokens, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.methods.attention.base import SelfAttention
from models.methods.ras.attention import RasAttention
from models.methods.ras.state import RasState
from models.parallel.forward import VideoTransformer


def choose_all(states: Sequence[RasState], step: int) -> list[Tensor] | None:
    """The choice of every request, or None where any of them needs all tokens: a batch has one number of tokens."""
    chosen = [state.choose(step) for state in states]
    active = [indices for indices in chosen if indices is not None]
    return active if len(active) == len(chosen) else None


def ras_forward(
    model: VideoTransformer,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    text_mask: Tensor | None,
    *,
    states: Sequence[RasState],
    step: int,
    inner: SelfAttention,
) -> Tensor:
    """As ``model.forward``, (B, C, T, H, W) to (B, out, T, H, W), in ``step`` of every request in ``states``.

    Raises: ValueError: rows do not divide among the requests.
    """
    if not states or latents.shape[0] % len(states):
        raise ValueError(f"{latents.shape[0]} rows for {len(states)} requests; need equally many for each")
    rows = latents.shape[0] // len(states)
    grid = model.config.grid(*latents.shape[2:])
    active = choose_all(states, step)
    tokens, positions = model.patchify(latents), model.positions(grid, latents.device)
    if active is not None:
        indices = torch.stack([one for one in active for _ in range(rows)])
        tokens = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
        positions = positions[indices]
    conditioning = model.conditioning(timestep, text)
    attention = RasAttention(inner, [state.cache for state in states], active)
    tokens = model.run_blocks(tokens, positions, conditioning, text_mask, attention)
    values = torch.split(model.project(tokens, conditioning), rows)
    outputs = [
        state.finish(value, None if active is None else active[index])
        for index, (state, value) in enumerate(zip(states, values, strict=True))
    ]
    return model.unpatchify(torch.cat(outputs), grid)
