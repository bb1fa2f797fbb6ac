"""Decoding a clip in tiles, so that memory depends on the tile and not on the clip.

As the official code does it: runs of latent frames that share one frame, whose second copy is dropped; within a run,
squares that overlap and are blended linearly. Group norms see a tile only, so that tiles give another clip than the
whole does, without seams. A clip that fits into one tile is decoded as a whole, bit for bit.

      run 0 |----------------|            frames of latents, shared: the last of a run, the first of the next
      run 1                  |------...
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.vae_config import VaeTiling


def tiled_decode(vae: CausalVae, latents: Tensor, tiling: VaeTiling | None = None) -> Tensor:
    """As ``vae.decode``, with the activations of one tile at a time; the clip itself is held once.

    Raises: ValueError: as ``vae.decode``, or tiles that do not fit the VAE.
    """
    tiling = tiling or VaeTiling()
    config = vae.config
    vae.check_latents(latents)
    batch, _, frames, rows, columns = latents.shape
    if tiling.covers(config, (frames, rows, columns)):
        return vae.decode(latents)
    stride, space = config.time_stride, config.space_stride
    clip = latents.new_empty(batch, 3, stride * (frames - 1) + 1, space * rows, space * columns)
    for start, stop in runs(frames, tiling.latent_frames):
        skipped = 1 if start else 0
        into = clip[:, :, stride * start + skipped : stride * (stop - 1) + 1]
        _decode_run(vae, latents[:, :, start:stop], tiling, into, skipped)
    return clip


def runs(frames: int, longest: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges of latent frames, each of which begins with the last frame of the one before."""
    start = 0
    while start == 0 or start < frames - 1:
        yield start, min(start + longest, frames)
        start += longest - 1


def _decode_run(vae: CausalVae, latents: Tensor, tiling: VaeTiling, clip: Tensor, skipped: int) -> None:
    """Fill ``clip`` from one run, but for its first ``skipped`` frames. Only the edges of past tiles are kept."""
    side, step, blend = tiling.side(vae.config), tiling.step(vae.config), tiling.blend_px(vae.config)
    kept = tiling.side_px - blend
    above: dict[int, Tensor] = {}
    for row, y in enumerate(range(0, latents.shape[3], step)):
        left: Tensor | None = None
        for column, x in enumerate(range(0, latents.shape[4], step)):
            tile = vae.decode(latents[..., y : y + side, x : x + side])[:, :, skipped:]
            if row:
                _blend(above[column], tile, dim=3)
            if left is not None:
                _blend(left, tile, dim=4)
            above[column] = _edge(tile, blend, dim=3)
            left = _edge(tile, blend, dim=4)
            top, start = row * kept, column * kept
            clip[:, :, :, top : top + kept, start : start + kept] = tile[..., :kept, :kept]


def _edge(tile: Tensor, extent: int, dim: int) -> Tensor:
    extent = min(extent, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - extent, extent).clone()


def _blend(edge: Tensor, tile: Tensor, dim: int) -> None:
    """Fade, in place, from the edge of the tile before into the beginning of this one."""
    extent = min(edge.shape[dim], tile.shape[dim])
    if not extent:
        return
    shape = [1] * tile.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, device=tile.device, dtype=torch.float64) / extent).to(tile.dtype).reshape(shape)
    start = tile.narrow(dim, 0, extent)
    start.copy_(edge.narrow(dim, edge.shape[dim] - extent, extent) * (1 - weight) + start * weight)
