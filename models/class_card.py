"""What the cards of models that draw pictures of classes share. Free of torch."""

from __future__ import annotations

import numpy as np

from models.class_words import number_of
from models.contract import Point, SettingError, Variant
from models.io import ImageRequest


def check_request(variant: Variant, request: ImageRequest) -> None:
    """Pass a size and a class that the checkpoint knows. Raises: SettingError."""
    for name, check in (
        ("size", lambda: variant.io.check_size(request.width, request.height)),
        ("prompt", lambda: number_of(variant.config["classes"], request.prompt)),
    ):
        try:
            check()
        except ValueError as error:
            raise SettingError(name, str(error)) from None


def is_guided(point: Point) -> bool:
    """Whether each step also asks what the network would draw for no class."""
    return float(point["guidance_scale"]) != 1


def example(variant: Variant, random: np.random.Generator) -> ImageRequest:
    """A request for a picture of some class."""
    width, height = variant.io.size
    number = int(random.integers(variant.config["network"]["num_classes"]))
    return ImageRequest(width=width, height=height, prompt=f"class {number}")
