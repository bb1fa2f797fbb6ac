"""Pieces of a clip that overlap and are blended by ramps, as DiffSynth has them: windows and chunks.

A ramp rises by one a frame from either end of a piece, but not where the clip itself ends, and never above
``border``; it is told in shares of that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.families.exvideo.shapes import spans


def ramp(span: tuple[int, int], total: int, border: int) -> Tensor:
    """Weights of a piece's frames."""
    start, stop = span
    rising = [border if start == 0 else frame - start + 1 for frame in range(start, stop)]
    falling = [border if stop == total else stop - frame for frame in range(start, stop)]
    return torch.tensor([min(up, down, border) / border for up, down in zip(rising, falling, strict=True)])


def border_of(length: int, rows: int, columns: int) -> int:
    """Where DiffSynth's ramps end, from a piece's shape."""
    return max(1, (length + rows + columns) // 6)


def by_windows(predict: Callable[[Tensor], Tensor], sample: Tensor, length: int) -> Tensor:
    """What a network makes of clips (B, F, C, h, w) that it sees ``length`` frames of at a time, a fifth further each
    time; each window counts its frames from 0."""
    frames, rows, columns = sample.shape[1], *sample.shape[-2:]
    total: Tensor | None = None
    weight = torch.zeros(1, frames, 1, 1, 1, device=sample.device)
    for start, stop in spans(frames, length, max(1, length // 5)):
        made = predict(sample[:, start:stop]).float()
        counts = ramp((start, stop), frames, border_of(stop - start, rows, columns)).to(sample.device)
        counts = counts.view(1, -1, 1, 1, 1)
        total = made.new_zeros(made.shape[0], frames, *made.shape[2:]) if total is None else total
        total[:, start:stop] += made * counts
        weight[:, start:stop] += counts
    assert total is not None
    return total / weight
