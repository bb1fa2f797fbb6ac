"""A request for the generic checks."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from models.contract import Variant
from models.io import ClipIO, ClipRequest, ImageRequest

_PROMPTS = ("a red circle", "a blue square", "a red circle and a small blue square")


def example(variant: Variant, random: np.random.Generator) -> Any:
    """A prompt, and noise as the first frame: where one is needed, and every other time where it is optional."""
    prompt = _PROMPTS[int(random.integers(len(_PROMPTS)))]
    if not isinstance(variant.io, ClipIO):
        width, height = variant.io.size
        return ImageRequest(width=width, height=height, prompt=prompt)
    request = variant.io.settled(ClipRequest(prompt=prompt))
    if not variant.io.needs_picture and not (variant.io.takes_picture and random.integers(2)):
        return request
    return with_noise(request, random)


def with_noise(request: ClipRequest, random: np.random.Generator) -> ClipRequest:
    """The request with a first frame."""
    noise = random.integers(0, 256, (request.height, request.width, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(noise).save(written, "PNG")
    return replace(request, picture=written.getvalue())
