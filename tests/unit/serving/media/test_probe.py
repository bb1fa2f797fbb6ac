from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ImageTooLarge, InvalidImage, ServingError, UnsupportedMediaType
from serving.media.header import ImageFormat
from serving.media.limits import MediaLimits
from serving.media.probe import is_tiny, probe
from tests.support import media_files as files

LIMITS = MediaLimits()
FORMATS = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]


def refusal(data: bytes) -> ServingError | None:
    try:
        probe(data, LIMITS)
    except ServingError as error:
        return error
    return None


@pytest.mark.parametrize(("name", "options"), FORMATS)
@pytest.mark.parametrize(("height", "width"), [(7, 13), (40, 50), (301, 4)])
def test_header_size_and_format_are_what_was_encoded(
    name: str, options: dict[str, bool], height: int, width: int
) -> None:
    limits = MediaLimits(max_aspect=100.0)
    header = probe(files.encode(files.gradient(height, width), name, **options), limits)
    assert (header.width, header.height, header.format) == (width, height, ImageFormat(name))
    assert header.num_pixels == height * width


@pytest.mark.parametrize("name", sorted(files.bad_files()))
def test_bad_file_is_refused_by_probe_or_left_to_the_decoder_never_anything_else(name: str) -> None:
    data, code = files.bad_files()[name]
    error = refusal(data)
    assert error is None or error.code == code


def test_sixty_thousand_squared_png_is_refused_from_its_header() -> None:
    bomb = files.png_bomb()
    assert len(bomb) < 200
    with pytest.raises(ImageTooLarge, match="60000 x 60000 pixels; the longest allowed side is 16384"):
        probe(bomb, LIMITS)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GIF89a........", "a GIF file"),
        (b"\0\0\0\x20ftypavif....", "AVIF, HEIC or MP4"),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
        (b"hello, I am picture.png", "unknown format"),
    ],
)
def test_other_formats_are_named_and_the_remedy_given(data: bytes, says: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=says) as caught:
        probe(data, LIMITS)
    assert "send a JPEG, PNG or WebP file" in caught.value.message


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
def test_animated_file_is_refused_as_animated(name: str) -> None:
    with pytest.raises(InvalidImage, match="animated; the limit is 1 frame"):
        probe(files.animated(name), LIMITS)


def test_jpeg_with_its_height_told_later_is_refused() -> None:
    data = bytearray(files.encode(files.gradient(40, 50), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = b"\0\0"
    with pytest.raises(InvalidImage, match="50 x 0 pixels"):
        probe(bytes(data), LIMITS)


def test_webp_canvas_that_differs_from_the_picture_is_refused() -> None:
    data = bytearray(files.encode(files.gradient(40, 50), "WEBP", exif=files.exif_orientation(1)))
    assert data[12:16] == b"VP8X"
    data[24:27] = struct.pack("<I", 59)[:3]
    with pytest.raises(InvalidImage, match="canvas and picture differ"):
        probe(bytes(data), LIMITS)


def test_file_of_endless_empty_segments_is_given_up_on() -> None:
    jpeg = b"\xff\xd8" + b"\xff\xfe\x00\x02" * 100_000
    png = b"\x89PNG\r\n\x1a\n" + files.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
    for data in (jpeg, png + files.png_chunk(b"tIME", b"") * 100_000, b"\xff\xd8" + b"\xff" * 100_000):
        with pytest.raises(InvalidImage, match="the limit"):
            probe(data, LIMITS)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (files.encode(files.gradient(64, 64)), True),
        (files.encode(files.gradient(97, 97)), False),
        (files.encode(files.gradient(64, 64), exif=files.exif_orientation(6)), False),
        (files.encode(files.gradient(64, 64), icc_profile=files.swapped_profile()), False),
        (files.encode(files.gradient(64, 64), "JPEG"), True),
        (files.encode(files.gradient(64, 64), "JPEG", progressive=True), False),
        (files.encode(files.gradient(64, 64), "JPEG", exif=files.exif_orientation(6)), False),
        (files.encode(files.gradient(64, 64), "WEBP"), True),
        (files.encode(files.gradient(64, 64), "WEBP", icc_profile=files.swapped_profile()), False),
    ],
)
def test_only_small_plain_images_are_tiny(data: bytes, expected: bool) -> None:
    assert is_tiny(probe(data, LIMITS), len(data), LIMITS) is expected


@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBP"]), st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_typed_errors(prefix: bytes, tail: bytes) -> None:
    error = refusal(prefix + tail)
    assert error is None or len(error.message) < 300
