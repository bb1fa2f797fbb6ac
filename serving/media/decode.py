"""Encoded bytes to canonical pixels: one decoder, one result, for the cache key, the guard and the model alike.

Canonical means uint8 RGB as a person would see the file on a white page:

1. The first picture of a JPEG, the only one of a PNG or WebP file, whole. What decides is what decoders draw from: the
   coded samples and what they need. All of that must be there and undamaged, as far as the format can tell; nothing
   else in the file, before, between or behind, has a say (``jpeg``, ``png``, ``webp``; docs/media.md has the list).
2. 16-bit samples keep their high byte. Palettes are looked up. Grey is repeated.
3. Transparency is composed over white. A transparent level or colour is compared with the samples as they are stored.
4. An embedded ICC profile is converted to sRGB (perceptual intent). A profile that is broken, does not fit the pixels
   or is over ``MAX_PROFILE_BYTES`` is ignored, always. Without one, CMYK is converted by Pillow's plain formula. PNG
   gamma, chromaticity and coding-independent code points are ignored.
5. EXIF orientation is applied (``serving.media.exif``).

JPEGs are decoded at full size; libjpeg's scaled ("draft") decoding is not used, because it changes pixels.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageFile

from serving.domain import Pixels
from serving.errors import ClientError, ImageTooLarge, InvalidImage
from serving.media.exif import apply_orientation, read_orientation
from serving.media.header import ImageFormat, ImageHeader, StoredPicture
from serving.media.jpeg_decoder import read_jpeg
from serving.media.limits import MediaLimits
from serving.media.png_decoder import read_png
from serving.media.probe import probe
from serving.media.webp import read_webp


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalImage:
    """Decoded pixels: uint8 RGB, shape (H, W, 3), contiguous. ``original_size`` is (width, height) as stored."""

    rgb: Pixels
    original_size: tuple[int, int]
    format: ImageFormat


def decode(data: bytes, limits: MediaLimits, header: ImageHeader | None = None) -> CanonicalImage:
    """Decode one untrusted file. Pass ``header`` if ``probe`` was already called on the same bytes.

    Pure, but it swaps the process' warning filters while it runs: call it from one thread at a time.

    Raises:
        InvalidImage, UnsupportedMediaType, ImageTooLarge: see ``probe``; also for data that does not decode. The text
            is ours: nothing that a decoder says is passed on.
        RuntimeError: something in this process set ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES``.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set; truncated images would be accepted. Unset it")
    header = header or probe(data, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rgb = _decode(data, limits, header)
    except ClientError:
        raise
    except MemoryError:
        raise ImageTooLarge(
            f"image of {header.width} x {header.height} pixels needs more memory than a decoder may use. Scale it down"
        ) from None
    except (
        Exception
    ):  # Pillow raises whatever its parsers stumble over: OSError, SyntaxError, ValueError, struct.error...
        raise InvalidImage(
            f"{header.format.value} image of {header.width} x {header.height} pixels is broken or truncated; "
            "check that the file opens in a viewer and send all of it"
        ) from None
    return CanonicalImage(rgb=rgb, original_size=(header.width, header.height), format=header.format)


def _decode(data: bytes, limits: MediaLimits, header: ImageHeader) -> Pixels:
    stored = _read(data, limits, header.format)
    if stored.colour.size != (header.width, header.height):
        raise InvalidImage("image contradicts its own header; re-encode it")
    rgb = _on_white(_to_srgb(stored.colour, stored.profile), stored.alpha)
    pixels = np.ascontiguousarray(np.asarray(apply_orientation(rgb, read_orientation(stored.exif)), dtype=np.uint8))
    pixels.flags.writeable = False
    return pixels


def _read(data: bytes, limits: MediaLimits, image_format: ImageFormat) -> StoredPicture:
    if image_format is ImageFormat.JPEG:
        return read_jpeg(data, limits)
    if image_format is ImageFormat.PNG:
        return read_png(data)
    return read_webp(data)


def _on_white(rgb: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is None:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            converted = None
        if converted is not None:
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")  # converting to the same mode copies
