"""Digits to train and judge the nano variant: scikit-learn's handwritten ones and digits drawn with shipped fonts.

Nothing is downloaded: scikit-learn ships 1,797 handwritten digits of 8x8 (UCI optdigits test set, Alpaydin and Kaynak
1998), matplotlib and Pillow ship fonts. The handwritten ones are split once by seed, stratified by class, into train,
calibration and test; some fonts never appear in training.

A glyph is ink coverage in 0..1, float32 (N, G, G) with G = 32; ``augment.render`` makes pictures of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

GLYPH_SIDE = 32
TRAIN_SHARE, CALIBRATION_SHARE = 0.6, 0.2
PILLOW_FONT = "Pillow default"
HELD_OUT_FONTS = (PILLOW_FONT, "DejaVuSerif-Italic.ttf", "cmss10.ttf", "DejaVuSansMono-Bold.ttf")
TRAIN_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmb10.ttf",
    "cmtt10.ttf",
)


@dataclass(frozen=True)
class Glyphs:
    """``ink`` float32 (N, G, G) in 0..1; ``labels`` int64 (N,)."""

    ink: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Handwritten digits; no sample is in two splits."""

    train: Glyphs
    calibration: Glyphs
    test: Glyphs


def handwritten(seed: int) -> Splits:
    """The fixed split of scikit-learn's digits for ``seed``: 60 / 20 / 20 percent of every class."""
    from sklearn.datasets import load_digits

    data = load_digits()
    ink = _upsample(data.images.astype(np.float32) / 16.0)
    labels = torch.from_numpy(data.target.astype(np.int64))
    rows = _stratified(data.target, seed)
    train, calibration, test = (Glyphs(ink[r], labels[r]) for r in rows)
    return Splits(train, calibration, test)


def drawn(fonts: Sequence[str]) -> Glyphs:
    """The ten digits in each of ``fonts`` (file names in matplotlib's font folder, or ``PILLOW_FONT``)."""
    ink = np.stack([draw_text(str(digit), font) for font in fonts for digit in range(10)])
    return Glyphs(torch.from_numpy(ink), torch.arange(10).repeat(len(fonts)))


def _upsample(images: NDArray[np.float32]) -> Tensor:
    small = torch.from_numpy(images)[:, None]
    return functional.interpolate(small, size=(GLYPH_SIDE, GLYPH_SIDE), mode="bilinear", align_corners=False)[:, 0]


def _stratified(labels: NDArray[np.int64], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for digit in range(10):
        rows = generator.permutation(np.flatnonzero(labels == digit))
        first, second = int(TRAIN_SHARE * len(rows)), int((TRAIN_SHARE + CALIBRATION_SHARE) * len(rows))
        for part, chosen in zip(parts, np.split(rows, [first, second]), strict=True):
            part.extend(chosen.tolist())
    return torch.tensor(sorted(parts[0])), torch.tensor(sorted(parts[1])), torch.tensor(sorted(parts[2]))


def draw_text(text: str, font_name: str, glyph_side: int = GLYPH_SIDE) -> NDArray[np.float32]:
    """One character, 80% of the glyph high or wide, drawn larger and averaged down."""
    font = _font(font_name, 200)
    left, top, right, bottom = font.getbbox(text)
    width, height = int(right - left), int(bottom - top)
    side = int(max(width, height) / 0.8)
    canvas = Image.new("L", (side, side), 0)
    ImageDraw.Draw(canvas).text(((side - width) / 2 - left, (side - height) / 2 - top), text, fill=255, font=font)
    small = canvas.resize((glyph_side, glyph_side), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / 255.0


def _font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if name == PILLOW_FONT:
        return ImageFont.load_default(size)
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
