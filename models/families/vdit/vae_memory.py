"""How much memory decoding takes at its peak, from a VAE's config alone: what admission asks before it starts.

Counts tensors of the decoder that are alive at once, layer by layer, weights apart. A 3-D convolution holds its input,
the input with frames repeated before it, and its output; a residual block keeps what it adds at the end. What the
backend allocates for itself (reordered inputs and outputs) is counted as one more copy of both.
"""

from __future__ import annotations

from models.families.vdit.vae_config import CausalVaeConfig, VaeTiling

_BYTES = 4


def predicted_peak_bytes(
    config: CausalVaeConfig,
    frames: int,
    height: int,
    width: int,
    tiled: VaeTiling | None = None,
    *,
    batch: int = 1,
    element_bytes: int = _BYTES,
) -> int:
    """Most bytes that ``decode`` (or ``tiled_decode`` with ``tiled``) holds at a time for a clip, weights apart.

    Raises: ValueError: sizes that do not fit, or tiles that do not fit the VAE.
    """
    grid = config.latent_grid(frames, height, width)
    clip = 3 * frames * height * width
    if tiled is None or tiled.covers(config, grid):
        return (_decoder(config, grid) + clip) * batch * element_bytes
    side = tiled.side(config)
    tile = (min(grid[0], tiled.latent_frames), min(grid[1], side), min(grid[2], side))
    strip = 3 * ((tile[0] - 1) * config.time_stride + 1) * tiled.blend_px(config)
    edges = strip * (width * tiled.side_px // (tiled.side_px - tiled.blend_px(config)) + 3 * tiled.side_px)
    return (_decoder(config, tile) + clip + edges) * batch * element_bytes


def _decoder(config: CausalVaeConfig, grid: tuple[int, int, int]) -> int:
    """Most elements alive at once in the decoder."""
    frames, rows, columns = grid
    width = config.decoder_widths[-1]
    peak = _block(width, width, frames * rows * columns) + frames * (rows * columns) ** 2
    for level, wide in reversed(list(enumerate(config.decoder_widths))):
        before = frames * rows * columns
        if config.decoder_blocks[level]:
            peak = max(peak, _block(width, wide, before), _block(wide, wide, before))
        space, time = config.decoder_spatial_upsample[level], config.decoder_temporal_upsample[level]
        if space:
            rows, columns = 2 * rows, 2 * columns
        if time or space.startswith("Spatial2xTime2x"):
            frames = 2 * frames - 1
        if space or time:
            peak = max(peak, wide * (before + 5 * frames * rows * columns))
        width = wide
    return max(peak, _conv(width, 3) * frames * rows * columns)


def _block(wide_in: int, wide_out: int, positions: int) -> int:
    """Elements of a residual block: the first convolution, the second, or the sum with a shortcut of its own."""
    first = wide_in + _conv(wide_in, wide_out)
    second = wide_in + wide_out + _conv(wide_out, wide_out)
    return max(first, second) * positions


def _conv(wide_in: int, wide_out: int) -> int:
    return 3 * wide_in + 2 * wide_out
