"""The guard's pre-screen as an attacker who knows it computes it: the same score, with a gradient.

The forward pass is ``serving.guard``'s own. The backward pass is that of the same features with smooth bins and without
rounding (straight-through); for pictures of one tile, so that there is no secret strip.

Legend: H W height and width, F features. Pixels are floats in 0..1, planes (3, H, W) grey levels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from loadtest.adversarial.perturbation import quantised
from loadtest.adversarial.victim import Victim
from serving.guard import features as guard
from serving.guard import screen

_SOFTNESS = 0.5
"""Grey levels over which the end of a bin is smeared."""


def screen_score(_: Victim, pixels: Tensor) -> Tensor:
    """Log-odds of each picture (B, H, W, 3), under the shipped head."""
    head = screen.shipped_screen().head
    return torch.stack([score_of(picture, head) for picture in pixels])


def score_of(picture: Tensor, head: screen.HeadFile) -> Tensor:
    """Of one picture (H, W, 3)."""
    soft = soft_features(picture)
    hard = torch.from_numpy(guard.features(quantised(picture))).to(soft)
    found = soft + (hard - soft).detach()
    mean, scale, weights = (torch.tensor(values) for values in (head.mean, head.scale, head.weights))
    standard = ((found - mean) / scale).clamp(-screen.MOST, screen.MOST)
    one, other = torch.triu_indices(len(standard), len(standard))
    return torch.cat([standard, 0.5 * standard[one] * standard[other]]) @ weights + head.bias


def soft_features(picture: Tensor) -> Tensor:
    """(F,), near those of ``serving.guard.features`` and differentiable in (H, W, 3)."""
    planes = 255.0 * picture.permute(2, 0, 1)
    inner, medians = planes[:, 1:-1, 1:-1], _medians(planes)
    sizes = (inner - medians).abs()
    found = [*_spread(sizes), *_shared(inner - medians), *_blocks(sizes), *_grid(planes[1]), *_scales(planes)]
    return torch.stack([*found, torch.zeros(())])  # what is saturated has no slope


def _medians(planes: Tensor) -> Tensor:
    height, width = planes.shape[1] - 2, planes.shape[2] - 2
    nine = [planes[:, row : row + height, col : col + width] for row in range(3) for col in range(3)]
    return torch.stack(nine).median(0).values


def _spread(sizes: Tensor) -> list[Tensor]:
    ends = torch.tensor(guard.BIN_ENDS) + 0.5
    below = torch.stack([((end - sizes) / _SOFTNESS).sigmoid().mean() for end in ends])
    shares = torch.cat([below[:1], below[1:] - below[:-1], 1.0 - below[-1:]]).clamp_min(1e-6).sqrt()
    mean, square = sizes.mean(), sizes.square().mean()
    return [*shares, _log(mean), _log(mean.square() / square.clamp_min(guard.FLOOR))]


def _shared(residual: Tensor) -> list[Tensor]:
    width = residual.shape[2]
    flat = residual.clamp(-guard.CLIP, guard.CLIP).flatten(1)
    powers = flat.square().sum(1) + guard.FLOOR
    colours = [flat[a] @ flat[b] / (powers[a] * powers[b]).sqrt() for a, b in ((0, 1), (1, 2), (0, 2))]
    steps, green = [rows * width + cols for rows, cols in guard.LAGS], flat[1]
    return [*colours, *(green[:-step] @ green[step:] / powers[1] for step in steps)]


def _blocks(sizes: Tensor) -> list[Tensor]:
    total = sizes.clamp_max(40.0).sum(0)[None, None]
    means = functional.avg_pool2d(total, guard.BLOCK).flatten().sort().values / 3.0
    at = [means[int(quantile * (len(means) - 1))] for quantile in guard.QUANTILES]
    return [_log(value, 0.02) for value in (*at, means[-1])]


def _grid(green: Tensor) -> list[Tensor]:
    across, down = _steps(green, 1).mean(0), _steps(green, 0).mean(1)
    return [_at_borders(across * (1 - 1 / len(green[0]))), _at_borders(down * (1 - 1 / len(green)))]


def _at_borders(steps: Tensor) -> Tensor:
    whole = steps[: len(steps) // guard.BLOCK * guard.BLOCK].reshape(-1, guard.BLOCK).mean(0).sort().values
    middle = whole[guard.BLOCK // 2 - 1 : guard.BLOCK // 2 + 1].mean()
    return _log(whole[-1], 0.05) - _log(middle, 0.05)


def _scales(planes: Tensor) -> list[Tensor]:
    first, found, pixels = _mean_step(planes[1]), [], planes[1][None, None]
    for _ in range(3):
        pixels = functional.avg_pool2d(pixels, 2)
        found.append(_mean_step(pixels[0, 0]) - first)
    return [*found, _mean_step(planes.mean(0)) - first]


def _steps(plane: Tensor, along: int) -> Tensor:
    return plane.diff(dim=along).abs().clamp_max(guard.CLIP)


def _mean_step(plane: Tensor) -> Tensor:
    return _log(_steps(plane, 1).mean(), 0.05)


def _log(value: Tensor, floor: float = guard.FLOOR) -> Tensor:
    return value.clamp_min(floor).log()
