"""Damaged, cut, glued and padded image files, and what may come of them.

Either a typed refusal, or right pixels: those of the undamaged picture, or what Pillow makes of the same damaged bytes
where a format has no checksum over its samples. What leaves the samples alone must leave the pixels alone.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from serving.errors import ServingError
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from tests.support import jpeg_files, png_files
from tests.support import media_files as files

LIMITS = MediaLimits()
MAX_SECONDS = 5.0
"""Longer than this, on a few thousand bytes, is a hang."""


@dataclass(frozen=True)
class Picture:
    """An undamaged file, and the pixels that it has."""

    name: str
    data: bytes
    pixels: files.Array


@dataclass(frozen=True)
class Mutant:
    """A changed file. ``is_harmless``: no decoder has a reason to see anything else in it."""

    picture: Picture
    data: bytes
    change: str
    is_harmless: bool = False


@dataclass(frozen=True)
class Found:
    """A mutant that ended badly."""

    mutant: Mutant
    outcome: str


def run(seed: int, seconds: float, told: Callable[[int], None]) -> list[Found]:
    """Try for ``seconds``; return what went wrong. ``told`` hears how many were tried."""
    draw, found, number = random.Random(seed), [], 0
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        mutant = mutated(draw)
        outcome = check(mutant)
        if outcome is not None:
            found.append(Found(mutant, outcome))
        number += 1
        told(number)
    return found


def check(mutant: Mutant) -> str | None:
    """Say what is wrong with what became of a file; None if nothing is."""
    started_s = time.monotonic()
    try:
        pixels = decode(mutant.data, LIMITS).rgb
    except ServingError as error:
        return f"refused: {error.message}" if mutant.is_harmless else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if time.monotonic() - started_s > MAX_SECONDS:
        return f"took {time.monotonic() - started_s:.1f} s"
    if np.array_equal(pixels, mutant.picture.pixels):
        return None
    if mutant.is_harmless:
        return "other pixels than those of the undamaged picture"
    if mutant.data.startswith(png_files.SIGNATURE):
        is_another = any(np.array_equal(pixels, picture.pixels) for picture in pictures())  # which was glued on
        return None if is_another else "pixels of no undamaged picture"
    other = _by_pillow(mutant.data)
    return None if other is None or np.array_equal(pixels, other) else "other pixels than Pillow's"


def mutated(draw: random.Random) -> Mutant:
    """Choose a picture and damage, cut or extend it."""
    return draw.choice(_CHANGES)(draw, draw.choice(pictures()))


@functools.cache
def pictures() -> tuple[Picture, ...]:
    """Small files of every format and coding, with metadata in them."""
    rgb, exif = files.noise(17, 24), files.exif_orientation(1)
    comment = files.png_chunk(b"tEXt", b"exif\0" + files.exif_orientation(6)) + files.png_chunk(b"zzZz", b"anything")
    coded = {"PNG RGB": files.encode(rgb)}
    for colour, depth, interlaced in ((0, 4, False), (2, 16, True), (6, 8, True), (4, 16, False), (0, 1, True)):
        samples = png_files.random_samples(17, 24, colour, depth)
        data = png_files.from_samples(samples, colour, depth, interlaced=interlaced, before=comment, after=comment)
        coded[f"PNG of colour type {colour} and {depth} bits"] = data
    for progressive in (0, 1):
        for blocks in (0, 2):
            options = {"progressive": progressive, "restart_marker_blocks": blocks}
            coded[f"JPEG {options}"] = files.encode(rgb, "JPEG", exif=exif, comment=b"\xff\xd9 is no end", **options)
    coded["JPEG of rare factors"] = jpeg_files.flat_blocks(24, 17, [(2, 2), (2, 1), (1, 2)])
    coded["WEBP"] = files.encode(rgb, "WEBP", exif=exif)
    with_alpha = Image.fromarray(np.dstack([rgb, files.noise(17, 24, 1)[..., 0]]))
    coded["WEBP with alpha"] = files.encode(with_alpha, "WEBP")
    coded["WEBP lossless with alpha"] = files.encode(with_alpha, "WEBP", lossless=True, exact=True)
    return tuple(Picture(name, data, decode(data, LIMITS).rgb) for name, data in coded.items())


# -- damage ----------------------------------------------------------------------------------------------------------


def _flip(draw: random.Random, picture: Picture) -> Mutant:
    data = bytearray(picture.data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return Mutant(picture, bytes(data), "bits flipped")


def _overwrite(draw: random.Random, picture: Picture) -> Mutant:
    start = draw.randrange(len(picture.data))
    length = draw.randint(1, 40)
    filling = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    data = picture.data[:start] + filling[: len(picture.data) - start] + picture.data[start + length :]
    return Mutant(picture, data, f"{length} bytes at {start} overwritten")


def _cut(draw: random.Random, picture: Picture) -> Mutant:
    length = draw.randrange(len(picture.data))
    end = draw.choice((b"", b"", jpeg_files.END, files.png_chunk(b"IEND", b""), picture.data))
    data = picture.data[:length] + end
    if picture.name.startswith("WEBP"):
        data = data[:4] + struct.pack("<I", max(0, len(data) - 8)) + data[8:]
    return Mutant(picture, data, f"cut at {length}, and {len(end)} bytes glued on")


def _take_out(draw: random.Random, picture: Picture) -> Mutant:
    start = draw.randrange(len(picture.data))
    length = draw.randint(1, 60)
    return Mutant(picture, picture.data[:start] + picture.data[start + length :], f"{length} bytes at {start} gone")


def _repeat(draw: random.Random, picture: Picture) -> Mutant:
    start = draw.randrange(len(picture.data))
    end = draw.randint(start, len(picture.data))
    return Mutant(picture, picture.data[:end] + picture.data[start:], f"bytes {start} to {end} twice")


def _cross(draw: random.Random, picture: Picture) -> Mutant:
    other = draw.choice(pictures()).data
    data = picture.data[: draw.randrange(len(picture.data))] + other[draw.randrange(len(other)) :]
    return Mutant(picture, data, "half of one and half of another")


# -- what changes nothing --------------------------------------------------------------------------------------------


def _extend(draw: random.Random, picture: Picture) -> Mutant:
    trailer = draw.choice((draw.randbytes(draw.randint(1, 300)), draw.choice(pictures()).data, jpeg_files.END * 9))
    return Mutant(picture, picture.data + trailer, f"{len(trailer)} bytes behind it", is_harmless=True)


def _describe(draw: random.Random, picture: Picture) -> Mutant:
    body = draw.choice((b"", b"exif\0", b"icc_profile\0", jpeg_files.END)) + draw.randbytes(draw.randint(0, 300))
    data = picture.data
    if picture.name.startswith("JPEG"):
        data = jpeg_files.with_segments(data, jpeg_files.segment(draw.choice((0xFE, 0xE1, 0xE3, 0xED, 0xEF)), body))
    elif picture.name.startswith("PNG"):
        kind = draw.choice((b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"pHYs", b"sBIT", b"bKGD", b"hIST", b"abCd"))
        chunk = bytearray(files.png_chunk(kind, body))
        chunk[-1] ^= draw.getrandbits(1)  # a wrong checksum, half of the time
        place = draw.choice((33, len(data) - 12))
        data = data[:place] + bytes(chunk) + data[place:]
    else:
        chunk = struct.pack("<4sI", b"ABCD", len(body)) + body + b"\0" * (len(body) & 1)
        data = data[:4] + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:] + chunk
    return Mutant(picture, data, "described", is_harmless=True)


_CHANGES = (_flip, _flip, _overwrite, _cut, _take_out, _repeat, _cross, _extend, _describe)


def _by_pillow(data: bytes) -> files.Array | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=["JPEG", "WEBP"])).convert("RGBA")
    except Exception:
        return None
    white = Image.new("RGB", image.size, "white")
    return np.asarray(Image.composite(image.convert("RGB"), white, image.getchannel("A")))
