"""Benign pictures of many kinds, to train the pre-screen with, to calibrate it and to judge it: most of them hard.

Three parts with seeds of their own, none of which is a seed of ``tests.benchmarks.guard.corpus`` or of an attack.
Photos are parts of photographs that ship with scikit-learn and scikit-image, of which each part has its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.tiling import TilingLimits
from models.training.texthawk2.synth.dense import dense_tile
from models.training.texthawk2.synth.describing import scene
from models.training.texthawk2.synth.examples import TASKS
from models.training.texthawk2.synth.fonts import default_fonts
from tests.benchmarks.guard.corpus import chart

Pixels = npt.NDArray[np.uint8]
Part: TypeAlias = Literal["training", "calibration", "evaluation"]
SEEDS: dict[Part, int] = {"training": 1611, "calibration": 1612, "evaluation": 1613}
LIMITS = TilingLimits(max_area=12, max_side=6)
BOUND = 8
"""Grey levels, as attackers have them."""
_DRAWN = ("word", "caption", "ground_shape", "count", "page", "verbose")
_PHOTOGRAPHS: dict[Part, tuple[str, ...]] = {
    "training": ("china", "astronaut", "motorcycle_left", "grass", "retina"),
    "calibration": ("rocket", "coffee", "brick", "hubble_deep_field", "color"),
    "evaluation": ("flower", "chelsea", "gravel", "camera", "ihc"),
}


def pictures(part: Part, kind: str, count: int) -> Iterator[Pixels]:
    """Tiles (T, S, S, 3) of the first ``count`` pictures of a kind. Raises: KeyError: there is no such kind."""
    for place in range(count):
        rng = np.random.default_rng((SEEDS[part], list(KINDS).index(kind), place))
        yield cut_tiles(KINDS[kind](rng, part), LIMITS)[0]


def drawn(rng: np.random.Generator, part: Part = "training") -> Pixels:
    """Rendered, as the models were trained on."""
    fonts, task = default_fonts(), _pick(rng, _DRAWN)
    example = (
        scene(rng, "test", fonts).example(rng, "caption") if task == "verbose" else TASKS[task](rng, "test", fonts)
    )
    return np.asarray(example.image.convert("RGB"), np.uint8)


def photo(rng: np.random.Generator, part: Part) -> Pixels:
    """A part of a photograph, mirrored half of the time, scaled to a tile, to several or to none."""
    source = _photographs(part)[int(rng.integers(len(_PHOTOGRAPHS[part])))]
    size = int(rng.integers(min(120, min(source.size) // 2), min(source.size) + 1))
    x, y = int(rng.integers(source.width - size + 1)), int(rng.integers(source.height - size + 1))
    side = int(_pick(rng, ("224", "224", "224", "448", "300")))
    cut = source.crop((x, y, x + size, y + size)).resize(
        (side, side), Image.Resampling(int(_pick(rng, ("1", "2", "3"))))
    )
    pixels = np.asarray(cut, np.uint8)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def paper(rng: np.random.Generator, part: Part) -> Pixels:
    """A chart, or text from edge to edge."""
    if rng.random() < 0.5:
        return np.asarray(chart(rng).convert("RGB"), np.uint8)
    return np.asarray(dense_tile(rng, "test", default_fonts())[0], np.uint8)


def any_of(rng: np.random.Generator, part: Part) -> Pixels:
    """Drawn, on paper or photographed."""
    return (drawn, photo, paper)[int(rng.integers(3))](rng, part)


def compressed(rng: np.random.Generator, part: Part) -> Pixels:
    """JPEG of quality 5 to 95; a third of the time twice, cut in between."""
    picture = jpeg(any_of(rng, part), int(rng.integers(5, 96)))
    if rng.random() < 1 / 3:
        x, y = rng.integers(1, 8, 2)
        picture = jpeg(picture[y:, x:], int(rng.integers(30, 96)))
    return picture


def resized(rng: np.random.Generator, part: Part) -> Pixels:
    """Scaled down and up again, or up, by any of the usual ways; half of the time JPEG came before."""
    picture = any_of(rng, part)
    if rng.random() < 0.5:
        picture = jpeg(picture, int(rng.integers(40, 96)))
    size = int(rng.integers(90, 600))
    way = Image.Resampling(int(_pick(rng, ("0", "1", "2", "3", "4", "5"))))
    scaled = Image.fromarray(picture).resize((size, size), way)
    return np.asarray(scaled.resize((224, 224), way) if rng.random() < 0.7 else scaled, np.uint8)


def noisy(rng: np.random.Generator, part: Part) -> Pixels:
    """With a bad camera's noise: of 2 to 40 levels, even or normal, in grey or in colours, then at times JPEG."""
    return _noised(rng, any_of(rng, part), float(rng.uniform(2, 40)))


def noise_within(rng: np.random.Generator, part: Part) -> Pixels:
    """With noise of at most an attacker's bound: even, normal, or every pixel up or down by the bound, which is what
    attacks begin with. Nobody's model minds it."""
    picture, kind = any_of(rng, part), int(rng.integers(3))
    if kind == 0:
        change = rng.integers(-BOUND, BOUND + 1, picture.shape)
    elif kind == 1:
        change = np.clip(np.rint(rng.normal(0, rng.uniform(2, BOUND), picture.shape)), -BOUND, BOUND)
    else:
        change = rng.choice([-BOUND, BOUND], picture.shape)
    return changed(picture, change)


def pure_noise(rng: np.random.Generator, part: Part) -> Pixels:
    """Nothing but noise, at several scales."""
    side = int(_pick(rng, ("224", "112", "56", "28")))
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.asarray(
        Image.fromarray(noise).resize((224, 224), Image.Resampling(int(_pick(rng, ("0", "2"))))), np.uint8
    )


KINDS: dict[str, Callable[[np.random.Generator, Part], Pixels]] = {
    "drawn": drawn,
    "paper": paper,
    "photo": photo,
    "jpeg": compressed,
    "resized": resized,
    "noise": noisy,
    "noise within the bound": noise_within,
    "nothing but noise": pure_noise,
}
"""Kinds of benign pictures."""


def jpeg(picture: Pixels, quality: int) -> Pixels:
    """As a file of that quality shows it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"), np.uint8)


def changed(picture: Pixels, change: npt.ArrayLike) -> Pixels:
    """The sum, as 8 bits hold it."""
    return np.clip(picture + np.asarray(change, np.float32), 0, 255).round().astype(np.uint8)


def _noised(rng: np.random.Generator, picture: Pixels, level: float) -> Pixels:
    shape = picture.shape if rng.random() < 0.7 else (*picture.shape[:2], 1)
    change = rng.uniform(-level, level, shape) if rng.random() < 0.5 else rng.normal(0, level / 2, shape)
    noised = changed(picture, change)
    return jpeg(noised, int(rng.integers(40, 96))) if rng.random() < 0.3 else noised


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


@lru_cache(maxsize=3)
def _photographs(part: Part) -> tuple[Image.Image, ...]:
    return tuple(Image.fromarray(_photograph(name)) for name in _PHOTOGRAPHS[part])


def _photograph(name: str) -> Pixels:
    import skimage.data
    from sklearn.datasets import load_sample_image

    if name in ("china", "flower"):
        return np.asarray(load_sample_image(f"{name}.jpg"), np.uint8)
    from pathlib import Path

    folder = Path(skimage.data.__file__).parent
    (path,) = [*folder.glob(f"{name}.png"), *folder.glob(f"{name}.jpg")]
    return np.asarray(Image.open(path).convert("RGB"), np.uint8)
