"""PNG files as software writes and transport damages them. Expected pixels are worked out from the samples."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from serving.errors import InvalidImage
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.media.probe import probe
from tests.support import media_files as files
from tests.support import png_files
from tests.support.media_files import png_chunk
from tests.support.png_files import KINDS, SIGNATURE, Samples, from_samples, ihdr, random_samples

LIMITS = MediaLimits()
PALETTE = np.random.default_rng(9).integers(0, 256, (256, 3)).astype(np.uint8)


def palette_for(depth: int) -> bytes:
    return png_chunk(b"PLTE", PALETTE[: 1 << depth].tobytes())


def by_us(data: bytes) -> files.Array:
    return decode(data, LIMITS).rgb


def by_hand(samples: Samples, colour: int, depth: int) -> files.Array:
    """Sections 8.3 and 13.12, to 8 bits: the high byte of 16, all of the range for fewer."""
    if colour == 3:
        return PALETTE[samples[..., 0]]
    levels = (samples >> 8 if depth == 16 else samples * (255 // ((1 << depth) - 1))).astype(np.uint8)
    return np.repeat(levels[..., :1], 3, axis=-1) if colour in (0, 4) else levels[..., :3]


def hidden(image: files.Array, is_hidden: np.ndarray) -> files.Array:
    return np.where(is_hidden[..., None], np.uint8(255), image)


def trns(*values: int) -> bytes:
    return png_chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def broken(chunk: bytes) -> bytes:
    """The chunk with a wrong checksum."""
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


# -- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "depth"), KINDS)
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(13, 21), (4, 5), (32, 9)])
def test_samples_of_every_kind_are_read(colour: int, depth: int, interlaced: bool, size: tuple[int, int]) -> None:
    samples = random_samples(*size, colour, depth)
    before = palette_for(depth) if colour == 3 else b""
    if colour in (4, 6):
        samples[..., -1] = (1 << depth) - 1  # opaque
    data = from_samples(samples, colour, depth, interlaced=interlaced, before=before)
    np.testing.assert_array_equal(by_us(data), by_hand(samples, colour, depth))


@pytest.mark.parametrize(("colour", "depth"), [(4, 8), (4, 16), (6, 8), (6, 16)])
def test_what_is_wholly_transparent_is_white(colour: int, depth: int) -> None:
    samples = random_samples(13, 21, colour, depth)
    samples[..., -1] = np.where(samples[..., -1] & 1, (1 << depth) - 1, 0)
    expected = hidden(by_hand(samples, colour, depth), samples[..., -1] == 0)
    np.testing.assert_array_equal(by_us(from_samples(samples, colour, depth)), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_transparent_level_is_compared_as_stored(depth: int, interlaced: bool) -> None:
    samples = random_samples(13, 21, 0, depth)
    key = int(samples[6, 7, 0])
    data = from_samples(samples, 0, depth, interlaced=interlaced, before=trns(key))
    expected = hidden(by_hand(samples, 0, depth), samples[..., 0] == key)
    np.testing.assert_array_equal(by_us(data), expected)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_every_level_of_few_bits_can_be_the_transparent_one(depth: int) -> None:
    samples = random_samples(16, 16, 0, depth)
    for key in range(1 << depth):
        expected = hidden(by_hand(samples, 0, depth), samples[..., 0] == key)
        np.testing.assert_array_equal(by_us(from_samples(samples, 0, depth, before=trns(key))), expected)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_transparent_colour_is_compared_as_stored(depth: int, interlaced: bool) -> None:
    samples = random_samples(13, 21, 2, depth)
    key = samples[6, 7].copy()
    samples[0, 0] = key
    samples[0, 1] = key ^ np.array([0, 0, 1], np.uint16)  # at 16 bits, the same high bytes
    data = from_samples(samples, 2, depth, interlaced=interlaced, before=trns(*key.tolist()))
    expected = hidden(by_hand(samples, 2, depth), (samples == key).all(axis=-1))
    np.testing.assert_array_equal(by_us(data), expected)
    assert (expected[0, 0] == 255).all()
    assert not (expected[0, 1] == 255).all()


def test_only_the_bits_of_a_sample_count_in_a_transparent_level() -> None:
    samples = random_samples(8, 8, 0, 4)
    high, low = (by_us(from_samples(samples, 0, 4, before=trns(key))) for key in (0xAB03, 3))
    np.testing.assert_array_equal(high, low)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_with_less_transparency_than_colours(depth: int) -> None:
    samples = random_samples(13, 21, 3, depth)
    data = from_samples(samples, 3, depth, before=palette_for(depth) + png_chunk(b"tRNS", b"\0"))
    np.testing.assert_array_equal(by_us(data), hidden(PALETTE[samples[..., 0]], samples[..., 0] == 0))


def test_index_behind_the_palette_is_black() -> None:
    samples = random_samples(13, 21, 3, 4)
    data = from_samples(samples, 3, 4, before=palette_for(1))
    shown = np.where(samples < 2, PALETTE[samples[..., 0]], np.uint8(0))
    np.testing.assert_array_equal(by_us(data), shown)


@pytest.mark.parametrize(
    ("colour", "body"), [(0, b"\1"), (0, b"\0\1\0\2"), (2, b"\0\1"), (2, b""), (4, b"\0\1"), (6, b"\0\1\0\1\0\1")]
)
def test_transparency_that_does_not_fit_is_ignored(colour: int, body: bytes) -> None:
    samples = random_samples(8, 8, colour, 8)
    plain = by_us(from_samples(samples, colour, 8))
    np.testing.assert_array_equal(by_us(from_samples(samples, colour, 8, before=png_chunk(b"tRNS", body))), plain)


def test_transparency_damaged_misplaced_or_repeated_is_ignored_as_in_browsers() -> None:
    samples = random_samples(8, 8, 0, 4)
    plain, keyed = by_us(from_samples(samples, 0, 4)), by_us(from_samples(samples, 0, 4, before=trns(3)))
    for data in (from_samples(samples, 0, 4, before=broken(trns(3))), from_samples(samples, 0, 4, after=trns(3))):
        np.testing.assert_array_equal(by_us(data), plain)
    np.testing.assert_array_equal(by_us(from_samples(samples, 0, 4, before=trns(3) + trns(5))), keyed)
    indices = random_samples(8, 8, 3, 4)
    early = from_samples(indices, 3, 4, before=png_chunk(b"tRNS", b"\0") + palette_for(4))
    np.testing.assert_array_equal(by_us(early), PALETTE[indices[..., 0]])


# -- what says nothing about pixels ----------------------------------------------------------------------------------

_TEXT = b"tEXt"
HARMLESS = {
    **{
        f"text named {key}": png_chunk(_TEXT, key.encode() + b"\0value")
        for key in ("exif", "transparency", "interlace", "bbox", "icc_profile", "gamma", "srgb", "dpi", "aspect")
    },
    "compressed text named exif": png_chunk(b"zTXt", b"exif\0\0" + zlib.compress(files.exif_orientation(3))),
    "text of EXIF, as ImageMagick writes it": png_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\n")
    ),
    "XMP that turns": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='6'/>"),
    "text over 1 MiB": png_chunk(_TEXT, b"note\0" + b"x" * (2 << 20)),
    "compressed text that is a bomb": png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(64 << 20))),
    "text of an unknown method": png_chunk(b"zTXt", b"note\0\x09abc"),
    "text without an end": png_chunk(b"iTXt", b"note"),
    "profile over 4 MiB": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(5 << 20))),
    "profile that is a bomb": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(64 << 20))),
    "profile of an unknown method": png_chunk(b"iCCP", b"p\0\x07" + zlib.compress(files.swapped_profile())),
    "profile cut": png_chunk(b"iCCP", b"p\0\0" + zlib.compress(files.swapped_profile())[:-9]),
    "profile of a wrong checksum": broken(png_chunk(b"iCCP", b"p\0\0" + zlib.compress(files.swapped_profile()))),
    "profile without a name": png_chunk(b"iCCP", b""),
    "gamma cut": png_chunk(b"gAMA", b"\1"),
    "chromaticities cut": png_chunk(b"cHRM", b"\1\2"),
    "size of nothing": png_chunk(b"pHYs", b""),
    "time of nothing": png_chunk(b"tIME", b"\xff" * 7),
    "EXIF of nothing": png_chunk(b"eXIf", b""),
    "EXIF of a wrong checksum": broken(png_chunk(b"eXIf", files.exif_orientation(6))),
    "unknown chunk": png_chunk(b"vpAg", bytes(9)),
    "unknown chunk of a wrong checksum": broken(png_chunk(b"vpAg", bytes(9))),
    "animation of one frame": png_chunk(b"acTL", struct.pack(">II", 1, 0)),
    "animation damaged": broken(png_chunk(b"acTL", struct.pack(">II", 9, 0))),
    "animation cut": png_chunk(b"acTL", b"\0\0"),
    "a frame without animation": png_chunk(b"fdAT", b"\0\0\0\1abc"),
    "background": png_chunk(b"bKGD", b"\0" * 6),
}


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", HARMLESS)
def test_ancillary_chunk_never_decides(name: str, where: str) -> None:
    samples = random_samples(16, 16, 2, 8)
    data = from_samples(samples, 2, 8, **{where: HARMLESS[name]})
    np.testing.assert_array_equal(by_us(data), samples)


def test_what_follows_the_end_is_ignored() -> None:
    samples = random_samples(16, 16, 2, 8)
    data = from_samples(samples, 2, 8)
    for trailer in (b"\0", b"text", data, png_chunk(b"IDAT", b"abc"), broken(png_chunk(b"IEND", b""))):
        np.testing.assert_array_equal(by_us(data + trailer), samples)


@pytest.mark.parametrize("where", ["before", "after"])
def test_exif_of_its_own_chunk_turns_wherever_it_stands(where: str) -> None:
    samples = random_samples(16, 20, 2, 8)
    chunks = png_chunk(b"tEXt", b"exif\0" + files.exif_orientation(6)) + png_chunk(
        b"eXIf", files.exif_orientation(3).removeprefix(b"Exif\0\0")
    )
    np.testing.assert_array_equal(by_us(from_samples(samples, 2, 8, **{where: chunks})), samples[::-1, ::-1])


def test_profile_is_applied_alike_at_eight_and_sixteen_bits() -> None:
    profile = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(files.swapped_profile()))
    samples = random_samples(16, 16, 2, 8)
    eight, sixteen = (
        by_us(from_samples((samples * scale).astype(np.uint16), 2, depth, before=profile))
        for depth, scale in ((8, 1), (16, 257))
    )
    np.testing.assert_array_equal(eight, sixteen)
    assert np.abs(eight.astype(int) - samples).max() > 100


def test_palette_of_a_colour_image_is_a_suggestion() -> None:
    samples = random_samples(16, 16, 2, 8)
    np.testing.assert_array_equal(by_us(from_samples(samples, 2, 8, before=palette_for(8))), samples)


def test_pixel_data_in_many_chunks_is_one_stream() -> None:
    samples = random_samples(16, 16, 2, 8)
    stream = png_files.coded(samples, 2, 8)
    chunks = b"".join(png_chunk(b"IDAT", stream[i : i + 1]) + png_chunk(b"IDAT", b"") for i in range(len(stream)))
    data = SIGNATURE + ihdr(16, 16, 2, 8) + chunks + png_chunk(b"IEND", b"")
    np.testing.assert_array_equal(by_us(data), samples)


def test_pixel_data_beyond_the_last_row_is_ignored_and_not_unpacked() -> None:
    samples = random_samples(16, 16, 2, 8)
    for surplus in (b"\0", bytes(64 << 20)):
        stream = zlib.compress(png_files.filtered(samples, 2, 8) + surplus)
        data = SIGNATURE + ihdr(16, 16, 2, 8) + png_chunk(b"IDAT", stream) + png_chunk(b"IEND", b"")
        np.testing.assert_array_equal(by_us(data), samples)


# -- refusals --------------------------------------------------------------------------------------------------------


def with_pixels(stream: bytes, *, before: bytes = b"", after: bytes = b"") -> bytes:
    end = png_chunk(b"IEND", b"")
    return SIGNATURE + ihdr(16, 16, 2, 8) + before + png_chunk(b"IDAT", stream) + after + end


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT", b"IEND"])
def test_critical_chunk_of_a_wrong_checksum_is_refused(kind: bytes) -> None:
    data = bytearray(from_samples(random_samples(16, 16, 3, 8), 3, 8, before=palette_for(8)))
    at = data.index(kind)
    data[at + 4 + int.from_bytes(data[at - 4 : at], "big")] ^= 0x40
    with pytest.raises(InvalidImage, match=f"checksum of a chunk {kind.decode()} is wrong"):
        by_us(bytes(data))


def test_every_flipped_bit_of_critical_chunks_is_noticed() -> None:
    data = from_samples(random_samples(5, 6, 0, 8), 0, 8)
    for position in range(8, len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        with pytest.raises(InvalidImage):
            by_us(bytes(changed))


def test_stream_that_ends_early_is_refused_although_every_chunk_is_right() -> None:
    stream = png_files.coded(random_samples(16, 16, 2, 8), 2, 8)
    for length in range(len(stream)):
        with pytest.raises(InvalidImage):
            by_us(with_pixels(stream[:length]))


def test_stream_with_a_wrong_checksum_of_its_own_is_refused() -> None:
    stream = png_files.coded(random_samples(16, 16, 2, 8), 2, 8)
    with pytest.raises(InvalidImage):
        by_us(with_pixels(stream[:-1] + bytes([stream[-1] ^ 1])))


def test_pixel_data_that_goes_on_behind_another_chunk_is_refused_as_cut() -> None:
    stream = png_files.coded(random_samples(16, 16, 2, 8), 2, 8)
    with pytest.raises(InvalidImage, match="ends before its picture does"):
        by_us(with_pixels(stream[:100], after=png_chunk(b"tEXt", b"a\0b") + png_chunk(b"IDAT", stream[100:])))


def test_stream_of_missing_rows_is_refused() -> None:
    rows = png_files.filtered(random_samples(16, 16, 2, 8), 2, 8)
    with pytest.raises(InvalidImage, match="ends before its picture does"):
        by_us(with_pixels(zlib.compress(rows[:-1])))


def test_filter_that_does_not_exist_is_refused() -> None:
    rows = bytearray(png_files.filtered(random_samples(16, 16, 2, 8), 2, 8))
    rows[49 * 3] = 5
    with pytest.raises(InvalidImage):
        by_us(with_pixels(zlib.compress(rows)))


def test_unknown_critical_chunk_is_refused() -> None:
    stream = png_files.coded(random_samples(16, 16, 2, 8), 2, 8)
    with pytest.raises(InvalidImage, match="critical chunk ABCD that is not known"):
        by_us(with_pixels(stream, before=png_chunk(b"ABCD", b"")))


@pytest.mark.parametrize(
    "palette", [b"", png_chunk(b"PLTE", b""), png_chunk(b"PLTE", b"ab"), png_chunk(b"PLTE", bytes(771))]
)
def test_image_of_indices_without_a_readable_palette_is_refused(palette: bytes) -> None:
    with pytest.raises(InvalidImage, match="no readable palette"):
        by_us(from_samples(random_samples(8, 8, 3, 8), 3, 8, before=palette))


@pytest.mark.parametrize("place", [10, 11, 12])
def test_unknown_methods_of_the_header_are_refused(place: int) -> None:
    header = bytearray(struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    header[place] = 2
    data = SIGNATURE + png_chunk(b"IHDR", bytes(header)) + from_samples(random_samples(16, 16, 2, 8), 2, 8)[33:]
    with pytest.raises(InvalidImage, match="impossible size, bit depth, colour type or method"):
        probe(data, LIMITS)


def test_chunks_without_number_are_given_up_on() -> None:
    data = with_pixels(b"", after=png_chunk(b"tEXt", b"") * 100_001)
    with pytest.raises(InvalidImage, match="more than 100000 chunks, the limit"):
        by_us(data)
