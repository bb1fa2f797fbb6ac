"""Fonts for tests of synthetic text: matplotlib's DejaVu, which is always there, and the project's where fetched."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from models.texthawk2.synth.fonts import FONT_FOLDER, Face, FontSet, default_fonts

_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _family(*names: str) -> tuple[Face, ...]:
    return tuple(Face(_FOLDER / name) for name in names)


DEJAVU = FontSet(
    latin=(_family("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"), _family("DejaVuSansMono.ttf")),
    chinese=(),
    held_out_latin=(_family("DejaVuSerif.ttf"),),
    held_out_chinese=(),
)

needs_fetched_fonts = pytest.mark.skipif(
    not (FONT_FOLDER / "packages").exists(), reason="the Chinese fonts are not here: run scripts/fonts.sh"
)


def fetched_fonts() -> FontSet:
    """The project's own set; for tests marked ``needs_fetched_fonts``."""
    return default_fonts()
