"""Clean pictures to train and to judge on. None is downloaded: packages ship them, and text is drawn in their fonts.

No photograph and no font is in two splits. A picture is uint8 (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

SKIMAGE, SKLEARN, MATPLOTLIB = "skimage/data", "sklearn/datasets/images", "matplotlib/mpl-data/sample_data"
TRAIN = {
    SKIMAGE: (
        "brick.png",
        "cell.png",
        "coins.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "page.png",
        "retina.jpg",
    ),
    SKLEARN: ("china.jpg", "flower.jpg"),
    MATPLOTLIB: ("grace_hopper.jpg",),
}
VALIDATION = {SKIMAGE: ("rocket.jpg",)}
"""For the curve of training alone."""
TEST = {SKIMAGE: ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "text.png")}
TRAIN_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmtt10.ttf",
)
TEST_FONTS = ("DejaVuSerif-Italic.ttf", "DejaVuSansMono-Bold.ttf", "cmss10.ttf", "STIXGeneralBol.ttf")
_LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
_ENDS = (*[" "] * 8, ", ", ". ", "; ", " 1", " 42 ", ") ", " (", "-")


def photographs(names: Mapping[str, Sequence[str]]) -> dict[str, Pixels]:
    """Those pictures by name, in RGB.

    Raises: ValueError: a package that ships them is not installed.
    """
    return {name: _read(folder, name) for folder, files in names.items() for name in files}


def _read(folder: str, name: str) -> Pixels:
    package, _, inside = folder.partition("/")
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"{name} comes with {package}, which is not installed; pip install 'vireo[dev]'")
    with Image.open(Path(found.origin).parent / inside / name) as image:
        return np.asarray(image.convert("RGB"))


def pages(fonts: Sequence[str], count: int, seed: int, side: int = 256) -> list[Pixels]:
    """Pages of made-up words, each in one font (file names in matplotlib's folder), one size and two colours."""
    random = np.random.default_rng(seed)
    return [_page(fonts[index % len(fonts)], random, side) for index in range(count)]


def _page(font_name: str, random: np.random.Generator, side: int) -> Pixels:
    import matplotlib

    size = int(random.integers(10, 33))
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", font_name), size)
    dark, light = random.integers(0, 96, 3), random.integers(160, 256, 3)
    if random.random() < 0.5:
        dark, light = np.zeros(3, int), np.full(3, 255)
    ground, ink = (light, dark) if random.random() < 0.75 else (dark, light)
    page = Image.new("RGB", (side, side), tuple(map(int, ground)))
    draw = ImageDraw.Draw(page)
    for top in range(-int(random.integers(size)), side, int(1.3 * size)):
        draw.text((-int(random.integers(2 * size)), top), _words(random, 4 * side // size), tuple(map(int, ink)), font)
    return np.asarray(page)


def _words(random: np.random.Generator, length: int) -> str:
    text = ""
    while len(text) < length:
        # Letters that are frequent in English are frequent here.
        word = "".join(_LETTERS[int(26 * random.random() ** 2)] for _ in range(int(random.integers(1, 10))))
        style: Any = random.choice(["lower", "lower", "lower", "title", "upper"])
        text += getattr(word, style)() + str(random.choice(_ENDS))
    return text
