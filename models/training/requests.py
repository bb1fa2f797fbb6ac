"""What a model is asked for while it is calibrated: a few prompts and first frames, as large as the user wants."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from models.contract import Family, Variant
from models.io import ClipIO, ClipRequest, ImageRequest

_PROMPTS = (
    "a red circle moves left",
    "a house by the sea, waves roll in",
    "two cats on a sofa look around",
    "a green train crosses a bridge",
)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Asked:
    """``size``: width and height, ``num_frames``: of a clip; None: the usual ones, and of a clip all lengths that its
    model lists. ``count``: requests."""

    size: tuple[int, int] | None = None
    num_frames: int | None = None
    count: int = 8

    def described(self, requests: Sequence[Any], data_dir: Path | None) -> dict[str, Any]:
        """For the record."""
        first = requests[0]
        frames = {"num_frames": first.num_frames} if isinstance(first, ClipRequest) else {}
        source = "prompts and first frames of its own" if data_dir is None else "--data"
        return {"requests": len(requests), "size": f"{first.width}x{first.height}", **frames, "source": source}


USUAL = Asked()


def example_requests(family: Family, variant: Variant, asked: Asked, data_dir: Path | None = None) -> list[Any]:
    """Requests that differ in what is to be seen. ``data_dir``: pictures that clips begin with, else they are drawn.

    Raises: ValueError: a size or a length that the model does not do, or a folder without pictures.
    """
    if isinstance(variant.io, ClipIO):
        return _clips(variant.io, asked, data_dir)
    if asked.num_frames is not None:
        raise ValueError(f"{variant.id} makes pictures, which have no number of frames")
    made = [_picture(family, variant, number) for number in range(asked.count)]
    if asked.size is None:
        return made
    variant.io.check_size(*asked.size)
    return [replace(request, width=asked.size[0], height=asked.size[1]) for request in made]


def _picture(family: Family, variant: Variant, number: int) -> ImageRequest:
    if "example" in family.parts:
        request: ImageRequest = family.part("example")(variant, np.random.default_rng(number))
        return request
    largest = variant.io.largest
    width, height = variant.io.size or (largest.width, largest.height)
    return ImageRequest(width=width, height=height, prompt=_PROMPTS[number % len(_PROMPTS)])


def _clips(clip: ClipIO, asked: Asked, data_dir: Path | None) -> list[ClipRequest]:
    width, height = asked.size or (clip.width, clip.height)
    lengths = (asked.num_frames,) if asked.num_frames else clip.frame_counts
    for length in lengths:
        clip.grid(length, (width, height))
    firsts = _first_frames(asked.count, (width, height), data_dir) if clip.takes_picture else [b""] * asked.count
    return [
        clip.settled(
            ClipRequest(
                prompt=_PROMPTS[number % len(_PROMPTS)] if clip.takes_prompt else "",
                num_frames=lengths[number % len(lengths)],
                width=width,
                height=height,
                picture=first,
            )
        )
        for number, first in enumerate(firsts)
    ]


def _first_frames(count: int, size: tuple[int, int], data_dir: Path | None) -> list[bytes]:
    if data_dir is None:
        return [_encoded(_drawn(np.random.default_rng(number), size)) for number in range(count)]
    paths = sorted(path for path in data_dir.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ValueError(f"{data_dir} has no pictures (JPEG, PNG or WebP) for clips to begin with")
    firsts = []
    for number in range(count):
        with Image.open(paths[number % len(paths)]) as file:
            firsts.append(_encoded(ImageOps.fit(file.convert("RGB"), size, Image.Resampling.BICUBIC)))
    return firsts


def _drawn(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Three shapes on a background that fades."""
    width, height = size
    top, bottom = random.integers(0, 256, (2, 3))
    share = np.linspace(0, 1, height)[:, None, None]
    rows = (1 - share) * top + share * bottom
    picture = Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for shape in (draw.ellipse, draw.rectangle, draw.ellipse):
        left, upper = random.uniform(0, 0.7, 2) * size
        side = random.uniform(0.15, 0.3) * min(size)
        shape((left, upper, left + side, upper + side), fill=tuple(int(one) for one in random.integers(0, 256, 3)))
    return picture


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
