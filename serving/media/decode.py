"""Encoded bytes to canonical pixels: one decoder, one result, for the cache key, the guard and the model alike.

Canonical means uint8 RGB as a person would see the file on a white page:

1. The first (and only) picture of a JPEG, PNG or WebP file, whole: truncated files are refused.
2. 16-bit samples keep their high byte. Palettes are looked up. Grey is repeated.
3. Transparency is composed over white.
4. An embedded ICC profile is converted to sRGB (perceptual intent). A profile that is broken, does not fit the pixels
   or is over ``MAX_PROFILE_BYTES`` is ignored, always. Without one, CMYK is converted by Pillow's plain formula. PNG
   gamma and chromaticity chunks are ignored.
5. EXIF orientation is applied (``serving.media.exif``).

JPEGs are decoded at full size; libjpeg's scaled ("draft") decoding is not used, because it changes pixels.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from serving.domain import Pixels
from serving.errors import ClientError, ImageTooLarge, InvalidImage
from serving.media.exif import apply_orientation, read_orientation
from serving.media.limits import MediaLimits
from serving.media.probe import ImageFormat, ImageHeader, probe

MAX_PROFILE_BYTES = 4 << 20


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
            rgb = _decode(data, header)
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


def _decode(data: bytes, header: ImageHeader) -> Pixels:
    _check_complete(data, header)
    with _open(data, header.format) as image:
        if image.size != (header.width, header.height) or getattr(image, "n_frames", 1) != 1:
            raise InvalidImage("image contradicts its own header; re-encode it as a single still image")
        image.load()
        upright = apply_orientation(_to_rgb(image, header), read_orientation(image.info.get("exif")))
    pixels = np.ascontiguousarray(np.asarray(upright, dtype=np.uint8))
    pixels.flags.writeable = False
    return pixels


def _open(data: bytes, image_format: ImageFormat) -> ImageFile.ImageFile:
    """Open with exactly the plug-in that the signature named: no guessing, and no multi-picture JPEG variants."""
    stream = io.BytesIO(data)
    if image_format is ImageFormat.JPEG:
        return JpegImagePlugin.JpegImageFile(stream)
    if image_format is ImageFormat.PNG:
        return PngImagePlugin.PngImageFile(stream)
    return WebPImagePlugin.WebPImageFile(stream)


def _check_complete(data: bytes, header: ImageHeader) -> None:
    """Refuse files cut off after the last pixel too; Pillow lets some of them pass."""
    complete = True
    if header.format is ImageFormat.JPEG:
        complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    elif header.format is ImageFormat.PNG:
        end = data.rfind(b"IEND")
        complete = end >= 0 and end + 8 <= len(data)
    if not complete:
        raise InvalidImage(f"{header.format.value} file has no end marker; send the whole file")


def _to_rgb(image: Image.Image, header: ImageHeader) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_grey16(image)
    profile = image.info.get("icc_profile")
    colour, alpha = _split_alpha(image, header)
    return _on_white(_to_srgb(colour, profile), alpha)


def _split_alpha(image: Image.Image, header: ImageHeader) -> tuple[Image.Image, Image.Image | None]:
    """Return the image in mode L, RGB or CMYK, and its transparency in mode L, if any."""
    if "transparency" in image.info:
        if header.bit_depth == 16:
            # The key has 16 bits a channel and Pillow's pixels have 8: other pixels would vanish than in a viewer.
            raise InvalidImage("16-bit PNG with a transparent colour key is not supported; re-encode it with 8 bits")
        image = image.convert("RGBA")
    elif image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("RGBA", "LA"):
        colour = image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L")
        return colour, image.getchannel("A")
    return image.convert("L") if image.mode == "1" else image, None


def _on_white(rgb: Image.Image, alpha: Image.Image | None) -> Image.Image:
    if alpha is None:
        return rgb
    return Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile and len(profile) <= MAX_PROFILE_BYTES:
        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            converted = None
        if converted is not None:
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")  # converting to the same mode copies


def _from_grey16(image: Image.Image) -> Image.Image:
    """16-bit grey PNG, with an optional transparent level; profiles for it are ignored."""
    levels = np.asarray(image).astype(np.uint16)
    key = image.info.get("transparency")
    grey = (levels >> 8).astype(np.uint8)
    if isinstance(key, int):
        grey = np.where(levels == key, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")
