"""JPEG files as cameras, phones and damage make them. Expected pixels are Pillow's, of the plain file."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidImage
from serving.media.decode import decode
from serving.media.jpeg import first_picture
from serving.media.limits import MediaLimits
from serving.media.probe import probe
from tests.support import jpeg_files
from tests.support import media_files as files
from tests.support.jpeg_files import END, scans_of, segment, with_scans, with_segments

LIMITS = MediaLimits()
KINDS: dict[str, dict[str, int]] = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "restart markers": {"restart_marker_blocks": 2},
    "progressive": {"progressive": 1},
    "progressive with restart markers": {"progressive": 1, "restart_marker_blocks": 2},
}


def make(kind: str, height: int = 24, width: int = 40) -> bytes:
    return files.encode(files.noise(height, width), "JPEG", **KINDS[kind])


def by_pillow(data: bytes) -> files.Array:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def by_us(data: bytes) -> files.Array:
    return decode(data, LIMITS).rgb


# -- the same pixels as Pillow's -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(24, 40), (67, 33)])
def test_pixels_are_those_of_pillow(kind: str, size: tuple[int, int]) -> None:
    data = make(kind, *size)
    np.testing.assert_array_equal(by_us(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_inks_are_those_of_pillow(mode: str) -> None:
    data = files.encode(Image.fromarray(files.noise(24, 40)).convert(mode), "JPEG")
    np.testing.assert_array_equal(by_us(data), by_pillow(data))


@pytest.mark.parametrize(
    "factors",
    [
        [(1, 1)],
        [(1, 1)] * 3,
        [(2, 2), (1, 1), (1, 1)],
        [(4, 1), (1, 1), (1, 1)],
        [(4, 2), (1, 1), (1, 1)],
        [(2, 2), (2, 1), (1, 2)],
        [(1, 1), (2, 1), (2, 1)],
        [(3, 1), (1, 1), (1, 1)],
        [(2, 2), (1, 1), (1, 1), (2, 2)],
        [(1, 2), (1, 1), (1, 1), (1, 1)],
    ],
    ids=str,
)
@pytest.mark.parametrize("restart_interval", [0, 2])
def test_sampling_factors_are_read_however_rare_and_a_cut_is_seen(
    factors: list[tuple[int, int]], restart_interval: int
) -> None:
    data = jpeg_files.flat_blocks(96, 48, factors, restart_interval=restart_interval)
    np.testing.assert_array_equal(by_us(data), by_pillow(data))
    for length in (5, 20):
        with pytest.raises(InvalidImage):
            by_us(data[: -2 - length].rstrip(b"\xff") + END)


def test_components_of_one_name_are_read_as_libjpeg_does() -> None:
    data = jpeg_files.flat_blocks(50, 40, [(1, 1)] * 3, ids=(0, 0, 0))
    np.testing.assert_array_equal(by_us(data), by_pillow(data))


# -- what is not the picture -----------------------------------------------------------------------------------------

TRAILERS = {
    "text": b"note to self",
    "end marker": END,
    "zeros": bytes(1000),
    "start of a cut picture": make("baseline")[:300],
    "scan": segment(0xDA, b"\1\1\0\0\x3f\0") + b"abc",
    "broken segment": b"\xff\xe1\xff\xff",
    "video": b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40,
    "many scans": b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 500,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trailer", TRAILERS)
def test_what_follows_the_first_end_is_ignored(kind: str, trailer: str) -> None:
    data = make(kind)
    np.testing.assert_array_equal(by_us(data + TRAILERS[trailer]), by_us(data))
    assert probe(data + TRAILERS[trailer], LIMITS) == probe(data, LIMITS)


HARMLESS = {
    "comment with markers inside": segment(0xFE, END + b"\xff\xda\0\x02 and so on"),
    "thumbnail": segment(0xE1, make("baseline", 8, 8)),
    "EXIF of no sense": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "EXIF cut": segment(0xE1, b"Exif\0\0"),
    "JFIF of an unknown version": segment(0xE0, b"JFIF\0\x09\x09\0\0\1\0\1\0\0"),
    "JFIF cut": segment(0xE0, b"JFIF"),
    "profile part 3 of 2": segment(0xE2, b"ICC_PROFILE\0\x03\x02abc"),
    "profile of nothing": segment(0xE2, b"ICC_PROFILE\0"),
    "pictures index of nonsense": segment(0xE2, b"MPF\0II*\0" + b"\xff" * 20),
    "Photoshop block": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x25" + b"\xff" * 9),
    "Adobe cut": segment(0xEE, b"Adobe\0"),
    "fill bytes": b"\xff" * 1000,
    "junk": b"junk \xff\0 and more",
    "restart and temporary markers": b"\xff\xd3\xff\x01",
    "number of lines": segment(0xDC, b"\0\x09"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_describes_is_ignored_whatever_it_holds(kind: str, name: str) -> None:
    data = make(kind)
    jfif, rest = data[2:20], data[20:]
    np.testing.assert_array_equal(by_us(data[:2] + jfif + HARMLESS[name] + rest), by_us(data))


def test_harmless_parts_between_scans_are_ignored() -> None:
    data = make("progressive")
    second = scans_of(data)[1]
    tables = data.rindex(b"\xff\xc4", 0, second)
    changed = data[:tables] + HARMLESS["comment with markers inside"] + data[tables:]
    np.testing.assert_array_equal(by_us(changed), by_us(data))


def test_padding_between_the_last_scan_and_the_end_is_ignored() -> None:
    for kind in KINDS:
        data = make(kind)
        np.testing.assert_array_equal(by_us(data[:-2] + bytes(64) + END), by_us(data))


def test_fill_bytes_before_the_end_marker_are_ignored() -> None:
    data = make("baseline")
    np.testing.assert_array_equal(by_us(data[:-2] + b"\xff" * 9 + END), by_us(data))


def test_unusual_numbers_in_a_sequential_scan_are_ignored() -> None:
    data = bytearray(make("baseline"))
    header_end = data.index(b"\xff\xda") + 2 + 12
    data[header_end - 3 : header_end] = b"\0\0\0"
    np.testing.assert_array_equal(by_us(bytes(data)), by_us(make("baseline")))


def test_adobe_transform_decides_about_colours_and_an_unknown_one_is_the_usual() -> None:
    plain = files.encode(files.gradient(24, 40), "JPEG")
    jfif_end = 2 + 2 + 16
    assert plain[2:4] == b"\xff\xe0"
    bare = plain[:2] + plain[jfif_end:]

    def with_adobe(transform: int) -> files.Array:
        return by_us(with_segments(bare, segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))))

    np.testing.assert_array_equal(with_adobe(1), by_us(plain))
    np.testing.assert_array_equal(with_adobe(77), by_us(plain))
    assert np.abs(with_adobe(0).astype(int) - by_us(plain)).max() > 50  # RGB samples that are in truth YCbCr


def test_first_exif_of_the_header_turns_and_a_later_one_does_not() -> None:
    data = make("baseline")
    exif = [segment(0xE1, files.exif_orientation(orientation)) for orientation in (3, 6)]
    np.testing.assert_array_equal(by_us(with_segments(data, *exif)), by_us(data)[::-1, ::-1])
    at_end = data[:-2] + exif[0] + END
    np.testing.assert_array_equal(by_us(at_end), by_us(data))


def test_profile_in_parts_is_joined_and_one_with_a_gap_is_none() -> None:
    profile = files.swapped_profile()
    data = files.encode(files.gradient(24, 40), "JPEG")
    whole = files.encode(files.gradient(24, 40), "JPEG", icc_profile=profile)
    half = len(profile) // 2
    parts = [
        segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 2]) + part) for i, part in ((2, profile[half:]), (1, profile[:half]))
    ]
    np.testing.assert_array_equal(by_us(with_segments(data, *parts)), by_us(whole))
    np.testing.assert_array_equal(by_us(with_segments(data, parts[0])), by_us(data))
    np.testing.assert_array_equal(by_us(with_segments(data, *parts, parts[0])), by_us(data))


def test_decoder_gets_the_first_picture_and_nothing_else() -> None:
    data = with_segments(make("baseline"), HARMLESS["thumbnail"], HARMLESS["EXIF of no sense"]) + TRAILERS["video"]
    picture = first_picture(data, LIMITS)
    assert b"Exif" not in picture.data
    assert b"ftyp" not in picture.data
    assert picture.data.endswith(END)
    assert picture.exif is not None


# -- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("progressive")])
def test_cut_anywhere_with_an_end_marker_glued_on_is_refused(kind: str) -> None:
    data = make(kind, 16, 24)
    for length in range(2, len(data) - 2):
        with pytest.raises(InvalidImage):
            by_us(data[:length] + END)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("progressive")])
def test_progressive_cut_inside_a_scan_with_an_end_marker_glued_on_is_refused(kind: str) -> None:
    data = make(kind, 16, 24)
    for start, end in zip(scans_of(data), [*scans_of(data)[1:], len(data) - 2], strict=True):
        coded = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        end = data.find(b"\xff\xc4", coded, end) if b"\xff\xc4" in data[coded:end] else end
        for length in range(coded, end):
            with pytest.raises(InvalidImage):
                by_us(data[:length] + END)


def test_progressive_without_its_last_refinements_is_whole_because_the_format_allows_it() -> None:
    data = make("progressive")
    last = data.rindex(b"\xff\xc4")
    np.testing.assert_array_equal(by_us(data[:last] + END), by_pillow(data[:last] + END))


def test_restart_interval_that_lost_bytes_is_refused() -> None:
    data = make("restart markers")
    at = data.index(b"\xff\xd1")
    with pytest.raises(InvalidImage):
        by_us(data[: at - 3] + data[at:])
    with pytest.raises(InvalidImage):  # or lost as a whole
        by_us(data[: data.index(b"\xff\xd0")] + data[at:])


def test_picture_that_ends_where_another_begins_is_refused() -> None:
    data = make("baseline")
    with pytest.raises(InvalidImage, match="second picture before its first one ends"):
        by_us(data[:-40] + data)


def test_component_without_a_scan_is_refused() -> None:
    data = bytearray(jpeg_files.flat_blocks(50, 40, [(1, 1)] * 3))
    frame = data.index(b"\xff\xda")
    grey = jpeg_files.flat_blocks(50, 40, [(1, 1)])
    coded = grey[grey.index(b"\xff\xda") :]  # a scan of the first component alone
    with pytest.raises(InvalidImage, match="ends before its picture does"):
        by_us(bytes(data[:frame]) + coded)


def test_code_that_stands_for_nothing_is_refused() -> None:
    data = jpeg_files.flat_blocks(64, 64, [(1, 1)])
    coded = data.index(b"\xff\xda") + 10
    ones = b"\xff\0" * 200
    with pytest.raises(InvalidImage):
        by_us(data[:coded] + ones + END)


# -- scans -----------------------------------------------------------------------------------------------------------


def test_scans_are_counted_in_the_header() -> None:
    assert probe(make("baseline"), LIMITS).num_scans == 1
    assert probe(make("progressive"), LIMITS).num_scans == len(scans_of(make("progressive"))) > 5
    assert probe(files.encode(files.noise(8, 8)), LIMITS).num_scans == 1


@pytest.mark.parametrize("read", [probe, decode])
def test_more_scans_than_allowed_are_refused_before_they_are_decoded(read: object) -> None:
    assert callable(read)
    limits = MediaLimits(max_scans=20)
    assert probe(with_scans(make("progressive"), 20), limits).num_scans == 20
    with pytest.raises(InvalidImage, match="more than 20 scans, the limit"):
        read(with_scans(make("progressive"), 21), limits)


def test_scans_behind_what_the_header_looks_at_are_counted_before_decoding() -> None:
    data = make("progressive", 1000, 1200)
    assert len(data) > 600_000
    limits = MediaLimits(max_scans=8)
    assert probe(data, limits).num_scans <= 8 < len(scans_of(data))
    with pytest.raises(InvalidImage, match="more than 8 scans"):
        decode(data, limits)


# -- other refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xDE, 0xF7])
def test_other_codings_are_refused_with_the_remedy(marker: int) -> None:
    data = make("baseline").replace(b"\xff\xc0", bytes([0xFF, marker]), 1)
    with pytest.raises(InvalidImage, match="re-encode it as baseline"):
        probe(data, LIMITS)


def test_twelve_bits_are_refused_with_the_remedy() -> None:
    data = make("baseline").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c", 1)
    with pytest.raises(InvalidImage, match="not 8 bits deep"):
        probe(data, LIMITS)


def test_scan_of_an_unknown_component_is_refused() -> None:
    data = bytearray(make("baseline"))
    data[data.index(b"\xff\xda") + 5] = 77
    with pytest.raises(InvalidImage, match="components that it does not have"):
        probe(bytes(data), LIMITS)


@pytest.mark.parametrize("length", [0, 1])
def test_segment_of_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidImage, match="impossible length"):
        probe(with_segments(make("baseline"), b"\xff\xe5" + struct.pack(">H", length)), LIMITS)
