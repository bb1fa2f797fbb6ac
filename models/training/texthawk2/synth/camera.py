"""What happens to a picture after it is drawn: it is turned a little, blurred, made noisy, compressed."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class Turn:
    """Affine map from pixels of the output to pixels of the canvas: x' = a x + b y + c, y' = d x + e y + f."""

    coefficients: tuple[float, float, float, float, float, float]

    def apply(self, canvas: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The output picture of ``size`` (width, height); what lies outside the canvas is black."""
        return canvas.transform(size, Image.Transform.AFFINE, self.coefficients, Image.Resampling.BILINEAR)

    def to_canvas(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the output lies on the canvas."""
        a, b, c, d, e, f = self.coefficients
        return a * x + b * y + c, d * x + e * y + f

    def to_output(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the canvas lies in the output."""
        a, b, c, d, e, f = self.coefficients
        determinant = a * e - b * d
        x, y = x - c, y - f
        return (e * x - b * y) / determinant, (a * y - d * x) / determinant


def turned(
    degrees: float, scale: float, output: tuple[int, int], stretch: float = 1.0, slant: float = 0.0
) -> tuple[Turn, tuple[int, int]]:
    """Turn by ``degrees`` and enlarge by ``scale``, in an output of (width, height); centre goes to centre.

    ``stretch``: by how much wider than high everything becomes. ``slant``: the tangent of the angle by which upright
    strokes lean to the right. Returns the map, and the smallest canvas (width, height) that covers the whole output.
    """
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    a, b = cosine / stretch + slant * sine, -sine / stretch + slant * cosine
    width, height = output
    canvas = (
        math.ceil(abs(a) * width + abs(b) * height) + 2,
        math.ceil(abs(sine) * width + abs(cosine) * height) + 2,
    )
    x, y = width / 2, height / 2
    shifted = (canvas[0] / 2 - a * x - b * y, canvas[1] / 2 - sine * x - cosine * y)
    return Turn((a, b, shifted[0], sine, cosine, shifted[1])), canvas


def photographed(rng: np.random.Generator, picture: Image.Image, strength: float = 1.0) -> Image.Image:
    """Blur, noise and JPEG artefacts, each in about a quarter of all pictures; ``strength`` 0..1 weakens them."""
    blurred, noisy, compressed = rng.random(3)
    if blurred < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(0.3 + float(rng.random()) * 0.7 * strength))
    if noisy < 0.25:
        picture = _with_noise(rng, picture, 4 + 26 * strength * float(rng.random()))
    if compressed < 0.2:
        picture = _compressed(picture, round(95 - 55 * strength * float(rng.random())))
    return picture


def other_weight(rng: np.random.Generator, picture: Image.Image, most: float = 0.6) -> Image.Image:
    """Strokes bolder or finer by up to half a pixel on each side, as of another font of the family."""
    spread = ImageFilter.MinFilter(3) if rng.random() < 0.5 else ImageFilter.MaxFilter(3)
    return Image.blend(picture, picture.filter(spread), most * float(rng.random()))


def _with_noise(rng: np.random.Generator, picture: Image.Image, level: float) -> Image.Image:
    pixels = np.asarray(picture)
    reach = max(1, round(level))
    grain = rng.integers(-reach, reach + 1, size=pixels.shape, dtype=np.int16)
    np.clip(grain + pixels, 0, 255, out=grain)
    return Image.fromarray(grain.astype(np.uint8))


def _compressed(picture: Image.Image, quality: int) -> Image.Image:
    kept = io.BytesIO()
    picture.save(kept, "JPEG", quality=quality)
    with Image.open(io.BytesIO(kept.getvalue())) as again:
        return again.convert("RGB")
