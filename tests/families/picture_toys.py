"""A toy that makes pictures out of words and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.contract import Family, LazyRef, Point, Source, Variant, Work
from models.io import ImageIO, ImageRequest

_HERE = "tests.families.picture_toys"
_LENGTH, _WIDTH, _HEIGHT = 16, 12, 8
_PIXELS = 3 * _WIDTH * _HEIGHT


def words(variant: Variant) -> Callable[[str], Any]:
    """Bytes as tokens."""
    return lambda prompt: np.frombuffer(prompt.encode()[:_LENGTH].ljust(_LENGTH), np.uint8).astype(np.int64)


def work(variant: Variant, request: ImageRequest | None, point: Point) -> Work:
    return Work({"macs": _LENGTH * _PIXELS}, bytes_held=8 * (_LENGTH + 1) + _PIXELS)


def build(variant: Variant, device: Any = "cpu", *, random_weights: bool = False) -> Any:
    import torch

    from models.checkpoint import load_into, read_weights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Linear(_LENGTH, _PIXELS)
    if not random_weights:
        assert variant.weights is not None
        load_into(network, read_weights(variant.weights))
    return network.requires_grad_(False)


class Runner:
    def __init__(self, network: Any, variant: Variant) -> None:
        self._network = network

    def forward(self, batch: Any, points: Sequence[Point]) -> dict[str, Any]:
        import torch

        noise = [torch.randn(_PIXELS, generator=torch.Generator().manual_seed(int(seed))) for seed in batch["seed"]]
        drawn = self._network(batch["prompt"].float() / 128) + torch.stack(noise) / 4
        return {"image": (drawn.sigmoid() * 255).to(torch.uint8).view(-1, _HEIGHT, _WIDTH, 3)}


PAINTER = Family(
    name="toy-painter",
    summary="a toy that paints",
    tasks=("images", "infer"),
    shape="unary",
    variants=(
        Variant(
            id="toy-painter-1",
            summary="a toy",
            io=ImageIO(takes_prompt=True, is_seeded=True, size=(_WIDTH, _HEIGHT), max_prompt_chars=100),
            source=Source(licence="Apache-2.0"),
        ),
    ),
    examples=("toy-painter-1",),
    build=LazyRef(f"{_HERE}:build"),
    runner=LazyRef(f"{_HERE}:Runner"),
    work=LazyRef(f"{_HERE}:work"),
    parts={"words": LazyRef(f"{_HERE}:words")},
)
