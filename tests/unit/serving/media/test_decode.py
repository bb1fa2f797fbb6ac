from __future__ import annotations

import hashlib
import io
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from serving.errors import InvalidImage, ServingError
from serving.media.decode import decode
from serving.media.exif import read_orientation
from serving.media.header import ImageFormat
from serving.media.limits import MediaLimits
from serving.media.prepare import FORMAT_VERSION, content_sha256
from tests.fuzz import images
from tests.support import media_files as files

LIMITS = MediaLimits()


def upright(stored: files.Array, orientation: int) -> files.Array:
    """EXIF 2.32 by hand: where row 0 and column 0 of the stored image belong."""
    turned = stored.transpose(1, 0, 2) if orientation >= 5 else stored
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    return turned[:, ::-1] if orientation in (2, 3, 6, 7) else turned


def decoded_or_refused(data: bytes) -> files.Array | ServingError:
    try:
        return decode(data, LIMITS).rgb
    except ServingError as error:
        return error


# -- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_lossless_file_decodes_to_exactly_the_pixels_encoded(name: str, options: dict[str, bool]) -> None:
    pixels = files.noise(37, 53)
    image = decode(files.encode(pixels, name, **options), LIMITS)
    np.testing.assert_array_equal(image.rgb, pixels)
    assert image.rgb.flags.c_contiguous
    assert (image.original_size, image.format) == ((53, 37), ImageFormat(name))


@pytest.mark.parametrize(("name", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_file_decodes_close_to_the_pixels_encoded(name: str, options: dict[str, int]) -> None:
    y, x = np.mgrid[0:80, 0:120]
    smooth = np.stack([x * 2, y * 3, 255 - x - y], axis=-1).astype(np.uint8)
    image = decode(files.encode(smooth, name, **options), LIMITS)
    assert np.abs(image.rgb.astype(int) - smooth).mean() < 3  # chroma subsampling blurs by about that


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
def test_exif_orientation_turns_the_image_upright(
    name: str, options: dict[str, int], order: str, orientation: int
) -> None:
    stored = files.gradient(24, 40)
    plain = decode(files.encode(stored, name, **options), LIMITS).rgb
    data = files.encode(stored, name, exif=files.exif_orientation(orientation, order), **options)
    image = decode(data, LIMITS)
    np.testing.assert_array_equal(image.rgb, upright(plain, orientation))
    assert image.original_size == (40, 24)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_impossible_orientation_is_ignored(orientation: int) -> None:
    stored = files.gradient(24, 40)
    data = files.encode(stored, exif=files.exif_orientation(orientation))
    np.testing.assert_array_equal(decode(data, LIMITS).rgb, stored)


def test_orientation_in_xmp_is_not_followed_because_viewers_do_not() -> None:
    stored = files.gradient(24, 40)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = decode(files.encode(stored, "JPEG"), LIMITS).rgb
    np.testing.assert_array_equal(decode(files.encode(stored, "JPEG", xmp=xmp), LIMITS).rgb, plain)


@given(st.binary(max_size=64))
def test_orientation_of_random_exif_never_raises(raw: bytes) -> None:
    assert 1 <= read_orientation(b"Exif\0\0II*\0\x08\0\0\0" + raw) <= 8
    assert 1 <= read_orientation(raw) <= 8


def test_alpha_is_composed_over_white() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 2:4, 3], rgba[:, 4:, 3] = 128, 255
    rgb = decode(files.encode(Image.fromarray(rgba)), LIMITS).rgb
    np.testing.assert_array_equal(rgb[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(rgb[0, 7], [200, 0, 0])
    half = np.round((np.array([200, 0, 0]) * 128 + 255 * 127) / 255)
    np.testing.assert_allclose(rgb[0, 2], half, atol=1)  # rounding of the blend


def test_grey_alpha_is_composed_over_white() -> None:
    la = np.dstack([np.full((8, 8), 40, np.uint8), np.repeat([[0, 255]], 8, 0).repeat(4, 1).astype(np.uint8)])
    rgb = decode(files.encode(Image.fromarray(la, "LA")), LIMITS).rgb
    np.testing.assert_array_equal(rgb[:, :4], np.full((8, 4, 3), 255))
    np.testing.assert_array_equal(rgb[:, 4:], np.full((8, 4, 3), 40))


def test_palette_is_looked_up_and_its_transparent_entry_is_white() -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    indices = np.asarray(image)
    np.testing.assert_array_equal(decode(files.encode(image), LIMITS).rgb, colours[indices])
    colours[1] = 255
    np.testing.assert_array_equal(decode(files.encode(image, transparency=1), LIMITS).rgb, colours[indices])
    half = decode(files.encode(image, transparency=bytes([255, 0, 255])), LIMITS).rgb
    np.testing.assert_array_equal(half, colours[indices])


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits_spans_the_whole_range(depth: int) -> None:
    per_byte = 8 // depth
    rows = (b"\0" + b"\x00" * (4 // per_byte or 1) + b"\xff" * (4 // per_byte or 1)) * 8
    width = 2 * (4 // per_byte or 1) * per_byte
    rgb = decode(files.png(width, 8, depth, 0, rows), LIMITS).rgb
    np.testing.assert_array_equal(rgb[:, : width // 2], np.zeros((8, width // 2, 3)))
    np.testing.assert_array_equal(rgb[:, width // 2 :], np.full((8, width // 2, 3), 255))


def test_bilevel_with_a_transparent_level_is_white_there() -> None:
    data = files.png(8, 8, 1, 0, b"\0\x0f" * 8, files.png_chunk(b"tRNS", struct.pack(">H", 0)))
    np.testing.assert_array_equal(decode(data, LIMITS).rgb, np.full((8, 8, 3), 255))


def test_rgb_with_a_transparent_colour_is_white_there() -> None:
    pixels = files.gradient(16, 16)
    data = files.encode(Image.fromarray(pixels), transparency=tuple(int(v) for v in pixels[3, 5]))
    expected = pixels.copy()
    expected[np.all(pixels == pixels[3, 5], axis=-1)] = 255
    np.testing.assert_array_equal(decode(data, LIMITS).rgb, expected)


def test_sixteen_bit_grey_keeps_the_high_byte() -> None:
    levels = (np.arange(64, dtype=np.uint16) * 1024 + 255).reshape(8, 8)
    expected = np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(decode(files.grey16_png(levels), LIMITS).rgb, expected)


def test_sixteen_bit_transparent_level_is_compared_in_full_precision() -> None:
    levels = np.full((8, 8), 0x1234, np.uint16)
    levels[0] = 0x1235  # the same high byte
    rgb = decode(files.grey16_png(levels, transparent=0x1235), LIMITS).rgb
    np.testing.assert_array_equal(rgb[0], np.full((8, 3), 255))
    np.testing.assert_array_equal(rgb[1:], np.full((7, 8, 3), 0x12))


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    levels = np.random.default_rng(3).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    np.testing.assert_array_equal(decode(files.rgb16_png(levels), LIMITS).rgb, (levels >> 8).astype(np.uint8))


def test_sixteen_bit_transparent_colour_is_compared_in_full_precision() -> None:
    levels = np.full((8, 8, 3), 0x1234, np.uint16)
    levels[0, :, 2] = 0x1235  # the same high bytes
    key = files.png_chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x1234, 0x1235))
    rgb = decode(files.rgb16_png(levels, key), LIMITS).rgb
    np.testing.assert_array_equal(rgb[0], np.full((8, 3), 255))
    np.testing.assert_array_equal(rgb[1:], np.full((7, 8, 3), 0x12))


def test_cmyk_jpeg_comes_out_as_rgb() -> None:
    cmyk = Image.new("CMYK", (32, 16), (0, 255, 255, 0))  # pure red ink
    rgb = decode(files.encode(cmyk, "JPEG", quality=95), LIMITS).rgb
    assert rgb.shape == (16, 32, 3)
    np.testing.assert_allclose(rgb.reshape(-1, 3).mean(0), [255, 0, 0], atol=4)  # JPEG loss


def test_embedded_profile_is_converted_to_srgb() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[..., 0] = 230
    for name in ("PNG", "WEBP", "JPEG"):
        options = {"lossless": True} if name == "WEBP" else {}
        data = files.encode(pixels, name, icc_profile=files.swapped_profile(), **options)
        mean = decode(data, LIMITS).rgb.reshape(-1, 3).mean(0)
        assert mean[1] > 200, name  # red under a profile whose red is green
        assert mean[0] < 40, name


def test_srgb_profile_changes_nothing_visible() -> None:
    pixels = files.noise(32, 32)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = decode(files.encode(pixels, icc_profile=profile), LIMITS).rgb
    assert np.abs(rgb.astype(int) - pixels).max() <= 1  # rounding inside lcms


@pytest.mark.parametrize("profile", [b"nonsense", b"\0" * 200, files.swapped_profile()[:300]])
@pytest.mark.parametrize("name", ["PNG", "JPEG"])
def test_broken_profile_is_ignored(profile: bytes, name: str) -> None:
    pixels = files.gradient(16, 16)
    plain = decode(files.encode(pixels, name), LIMITS).rgb
    np.testing.assert_array_equal(decode(files.encode(pixels, name, icc_profile=profile), LIMITS).rgb, plain)


def test_profile_of_another_colour_space_is_ignored() -> None:
    grey = Image.fromarray(files.gradient(16, 16)).convert("L")
    data = files.encode(grey, icc_profile=files.swapped_profile())
    np.testing.assert_array_equal(decode(data, LIMITS).rgb[..., 0], np.asarray(grey))


def test_several_pictures_in_one_jpeg_give_the_first() -> None:
    first, second = (Image.fromarray(files.noise(32, 32, seed)) for seed in (1, 2))
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[second])
    # Pillow writes the first picture as an ordinary JPEG at the front.
    plain = decode(files.encode(first, "JPEG"), LIMITS).rgb
    np.testing.assert_array_equal(decode(stream.getvalue(), LIMITS).rgb, plain)


def test_result_is_read_only_so_that_nobody_changes_what_was_hashed() -> None:
    rgb = decode(files.encode(files.gradient(8, 8)), LIMITS).rgb
    with pytest.raises(ValueError, match="read-only"):
        rgb[0, 0] = 0


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(files.bad_files()))
def test_bad_file_is_refused_with_its_code(name: str) -> None:
    data, code = files.bad_files()[name]
    with pytest.raises(ServingError) as caught:
        decode(data, LIMITS)
    assert caught.value.code == code
    assert ";" in caught.value.message or "." in caught.value.message  # a remedy follows the finding


@pytest.mark.parametrize(
    ("name", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})]
)
def test_file_cut_anywhere_is_refused(name: str, options: dict[str, bool]) -> None:
    data = files.encode(files.noise(12, 12), name, **options)
    decode(data, LIMITS)
    for length in range(len(data)):
        with pytest.raises(ServingError):
            decode(data[:length], LIMITS)


@settings(max_examples=300)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_mutated_file_gives_pixels_or_a_typed_error(name: str, data: st.DataObject) -> None:
    raw = bytearray(files.encode(files.noise(16, 20), name, exif=files.exif_orientation(3)))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    outcome = decoded_or_refused(bytes(raw))
    if isinstance(outcome, ServingError):
        assert "0x" not in outcome.message
        assert "Error" not in outcome.message
    else:
        assert outcome.dtype == np.uint8
        assert outcome.ndim == 3


@settings(max_examples=500)
@given(st.randoms(use_true_random=False))
def test_changed_file_gives_a_typed_error_or_right_pixels(draw: random.Random) -> None:
    mutant = images.mutated(draw)
    assert images.check(mutant) is None, (mutant.picture.name, mutant.change)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_random_bytes_give_a_typed_error(raw: bytes) -> None:
    with pytest.raises(ServingError):
        decode(raw, LIMITS)


def test_decoder_text_does_not_reach_the_message() -> None:
    broken = files.png(16, 16, 8, 2, b"\x09" * 49 * 16)  # rows of an unknown filter
    with pytest.raises(InvalidImage) as caught:
        decode(broken, LIMITS)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert caught.value.message.startswith("PNG image of 16 x 16 pixels is broken or truncated;")


# -- content hash ----------------------------------------------------------------------------------------------------


def test_hash_is_sha256_over_version_mode_size_and_pixels() -> None:
    pixels = files.noise(3, 5)
    text = FORMAT_VERSION + b"RGB" + (3).to_bytes(4, "little") + (5).to_bytes(4, "little") + pixels.tobytes()
    assert content_sha256(pixels) == hashlib.sha256(text).digest()


def test_same_bytes_in_another_shape_hash_differently() -> None:
    pixels = files.noise(4, 6)
    assert content_sha256(pixels) != content_sha256(pixels.reshape(6, 4, 3))


def test_same_pixels_hash_alike_whatever_the_file_and_the_strides() -> None:
    pixels = files.noise(20, 24)
    from_png = decode(files.encode(pixels), LIMITS).rgb
    from_webp = decode(files.encode(pixels, "WEBP", lossless=True, exact=True), LIMITS).rgb
    strided = np.asfortranarray(pixels)
    assert content_sha256(pixels) == content_sha256(from_png) == content_sha256(from_webp) == content_sha256(strided)


def test_one_changed_pixel_changes_the_hash() -> None:
    pixels = files.noise(20, 24)
    changed = pixels.copy()
    changed[19, 23, 2] ^= 1
    assert content_sha256(pixels) != content_sha256(changed)
