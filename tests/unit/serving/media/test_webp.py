"""WebP files with more, or less, in them than a picture. Expected pixels are Pillow's, of the plain file."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidImage
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.media.probe import probe
from tests.support import media_files as files

LIMITS = MediaLimits()
EXIF, ALPHA, PROFILE = 0x08, 0x10, 0x20
KINDS = ["lossy", "lossless", "lossy with alpha", "lossless with alpha"]


def picture(kind: str, height: int = 24, width: int = 40) -> Image.Image:
    rgb = files.noise(height, width)
    if "alpha" not in kind:
        return Image.fromarray(rgb)
    return Image.fromarray(np.dstack([rgb, files.noise(height, width, 1)[..., 0]]))


def make(kind: str) -> bytes:
    return files.encode(picture(kind), "WEBP", lossless=kind.startswith("lossless"), exact=True)


def by_us(data: bytes) -> files.Array:
    return decode(data, LIMITS).rgb


def by_pillow(data: bytes) -> files.Array:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    return np.asarray(Image.composite(image.convert("RGB"), white, image.getchannel("A")))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) & 1)


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 12
    while position < len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        found.append((kind, data[position + 8 : position + 8 + length]))
        position += 8 + length + (length & 1)
    return found


def container(*chunks: bytes) -> bytes:
    return chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def extended(flags: int, height: int = 24, width: int = 40) -> bytes:
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides)


def wrapped(kind: str, flags: int = 0, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """The picture in an extended container."""
    parts = [chunk(name, body) for name, body in chunks_of(make(kind)) if name != b"VP8X"]
    return container(extended(flags), before, *parts, after)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(kind: str) -> None:
    np.testing.assert_array_equal(by_us(make(kind)), by_pillow(make(kind)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trailer", [b"\0", b"a note", chunk(b"ANMF", bytes(16)), b"RIFF\xff\xff\xff\xffWEBP"])
def test_what_follows_the_container_is_ignored(kind: str, trailer: bytes) -> None:
    np.testing.assert_array_equal(by_us(make(kind) + trailer), by_us(make(kind)))


HARMLESS = {
    "unknown chunk": (0, chunk(b"JUNK", b"abc")),
    "EXIF of nonsense": (EXIF, chunk(b"EXIF", b"MM\0*\xff\xff\xff\xff")),
    "EXIF of nothing": (EXIF, chunk(b"EXIF", b"")),
    "EXIF announced and not there": (EXIF, b""),
    "EXIF not announced": (0, chunk(b"EXIF", files.exif_orientation(6))),
    "XMP that turns": (0x04, chunk(b"XMP ", b"<x tiff:Orientation='6'/>")),
    "profile of nonsense": (PROFILE, chunk(b"ICCP", b"nonsense")),
    "profile over 4 MiB": (PROFILE, chunk(b"ICCP", bytes(5 << 20))),
    "profile not announced": (0, chunk(b"ICCP", files.swapped_profile())),
    "frame of no animation": (0, chunk(b"ANMF", bytes(24))),
    "reserved bits": (0xC1, b""),
    "alpha announced and not there": (ALPHA, b""),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_describes_is_ignored_whatever_it_holds(kind: str, where: str, name: str) -> None:
    flags, extra = HARMLESS[name]
    np.testing.assert_array_equal(by_us(wrapped(kind, flags, **{where: extra})), by_us(make(kind)))


def test_chunk_that_claims_to_go_on_behind_the_file_is_ignored_after_the_picture() -> None:
    cut = struct.pack("<4sI", b"EXIF", 1 << 30)
    np.testing.assert_array_equal(by_us(wrapped("lossy", EXIF, after=cut)), by_us(make("lossy")))


def test_second_picture_is_ignored() -> None:
    second = b"".join(chunk(name, body) for name, body in chunks_of(make("lossless with alpha")))
    np.testing.assert_array_equal(by_us(wrapped("lossy", after=second)), by_us(make("lossy")))


@pytest.mark.parametrize("where", ["before", "after"])
def test_exif_and_profile_count_wherever_they_stand(where: str) -> None:
    exif = chunk(b"EXIF", files.exif_orientation(3))
    turned = by_us(wrapped("lossy", EXIF, **{where: exif}))
    np.testing.assert_array_equal(turned, by_us(make("lossy"))[::-1, ::-1])
    profile = chunk(b"ICCP", files.swapped_profile())
    coloured = by_us(wrapped("lossy", PROFILE, **{where: profile}))
    np.testing.assert_array_equal(
        coloured, by_us(files.encode(picture("lossy"), "WEBP", exact=True, icc_profile=files.swapped_profile()))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_picture_cut_inside_a_container_of_the_right_size_is_refused_but_for_its_last_bytes(kind: str) -> None:
    """libwebp does not notice when the very last ones are missing (docs/media.md)."""
    parts = chunks_of(make(kind))
    name, body = parts[-1]
    before = [chunk(*part) for part in parts[:-1]]
    for length in range(len(body) - 8):
        with pytest.raises(InvalidImage):
            by_us(container(*before, chunk(name, body[:length])))


def test_transparency_cut_inside_a_container_of_the_right_size_is_refused() -> None:
    parts = chunks_of(make("lossy with alpha"))
    alpha = next(i for i, (name, _) in enumerate(parts) if name == b"ALPH")
    body = parts[alpha][1]
    for length in range(0, len(body) - 8, 7):
        cut = [chunk(name, body[:length] if i == alpha else rest) for i, (name, rest) in enumerate(parts)]
        with pytest.raises(InvalidImage):
            by_us(container(*cut))


@pytest.mark.parametrize(
    "data",
    [
        container(extended(0)),
        container(chunk(b"JUNK", b"abcd")),
        container(chunk(b"VP8 ", b"\0" * 9)),
        container(chunk(b"VP8L", b"\x2f")),
        container(struct.pack("<4sI", b"VP8 ", 999) + b"\0" * 20),
    ],
)
def test_container_without_a_readable_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        probe(data, LIMITS)


def test_chunks_without_number_are_given_up_on() -> None:
    with pytest.raises(InvalidImage, match="more than 2000 chunks, the limit"):
        probe(wrapped("lossy", before=chunk(b"JUNK", b"") * 3000), LIMITS)
