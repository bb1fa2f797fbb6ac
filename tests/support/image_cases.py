"""Small files that real software writes, with the right answers: tests/data/images. No test logic."""

from __future__ import annotations

from pathlib import Path

from tests.support.source_tree import ROOT

FOLDER = ROOT / "tests" / "data" / "images"
SAME_PIXELS_AS = {
    "png-iccp-over-1mib.png": "digit-7.png",
    "png-iccp-wrong-crc.png": "digit-7.png",
    "png-phys-wrong-crc.png": "digit-7.png",
    "png-gama-short.png": "digit-7.png",
    "png-text-named-transparency.png": "digit-7.png",
    "png-text-named-interlace.png": "digit-7.png",
    "png-itxt-named-bbox.png": "digit-7.png",
    "png-text-named-exif.png": "digit-4.png",
}
"""To the picture of ``examples/`` that each is, with harmless metadata."""
DIGITS = {name: twin[6] for name, twin in SAME_PIXELS_AS.items()} | {"jpeg-complete-with-trailer.jpg": "4"}
"""To what a classifier says."""
REFUSED = ("jpeg-cut-with-end-marker.jpg", "png-idat-wrong-crc.png")
"""With ``invalid_image``."""
LANTERN = "png-grey4-trns-key1.png"
"""A page of 4-bit grey, whose transparent level is 1, with the word "lantern"."""


def load(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def load_twin(name: str) -> bytes:
    return (Path(ROOT) / "examples" / SAME_PIXELS_AS[name]).read_bytes()
