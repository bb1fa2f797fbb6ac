"""Fonts for tests of synthetic text: matplotlib's DejaVu, always there, and what has been fetched beside it."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from models.training.texthawk2.synth.fonts import CHINESE, FONT_FOLDER, HELD_OUT_CHINESE, Face, Family, FontSet, Listed

_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _family(*names: str) -> tuple[Face, ...]:
    return tuple(Face(_FOLDER / name) for name in names)


DEJAVU = FontSet(
    latin=(_family("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"), _family("DejaVuSansMono.ttf")),
    chinese=(),
    held_out_latin=(_family("DejaVuSerif.ttf"),),
    held_out_chinese=(),
)


def fetched(listed: tuple[Listed, ...]) -> tuple[Family, ...]:
    """Those of the listed families that are here."""
    faces = [[Face(FONT_FOLDER / "packages" / one.package / name, one.index) for name in one.files] for one in listed]
    return tuple(tuple(family) for family in faces if all(face.path.exists() for face in family))


WITH_CHINESE = FontSet(DEJAVU.latin, fetched(CHINESE), DEJAVU.held_out_latin, fetched(HELD_OUT_CHINESE))
"""DejaVu, and the Chinese fonts that are here: all of them, or the two that `make test` fetches."""

needs_chinese_fonts = pytest.mark.skipif(
    not (WITH_CHINESE.chinese and WITH_CHINESE.held_out_chinese),
    reason="no Chinese fonts: make test fetches them with apt-get, which was not here or reached nothing",
)
