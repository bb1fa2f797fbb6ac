"""What decoding an image is predicted to cost, from its header: what shares the decode workers, and is charged for only
until the real time is known.

Nanoseconds measured with Pillow 12 on one core of an EPYC, for pictures from flat to noise and from 0.25 to 16
megapixels, and rounded up. A tenant whose images take longer all the same is found out by ``schedulers.shared_slots``.
"""

from __future__ import annotations

from serving.media.header import ImageFormat, ImageHeader

_FIXED_S = 3e-4
"""The way to a worker and back."""
_PREPARED_PIXEL_S = 10e-9
"""Hashing and scaling, whatever the pixels came from."""
_PIXEL_S = {ImageFormat.JPEG: 15e-9, ImageFormat.PNG: 70e-9, ImageFormat.WEBP: 50e-9}
_BYTE_S = {ImageFormat.JPEG: 25e-9, ImageFormat.PNG: 5e-9, ImageFormat.WEBP: 60e-9}
_PROGRESSIVE_BYTE_S = 80e-9
_SCAN_PIXEL_S = 2e-9
"""Each of several scans goes over every block, whatever little it says of it."""


def predict_s(header: ImageHeader, num_bytes: int) -> float:
    """Seconds of one core for a file."""
    pixel_s, byte_s = _PIXEL_S[header.format] + _PREPARED_PIXEL_S, _BYTE_S[header.format]
    if header.num_scans > 1:
        pixel_s += _SCAN_PIXEL_S * header.num_scans
        byte_s = _PROGRESSIVE_BYTE_S
    return _FIXED_S + header.num_pixels * pixel_s + num_bytes * byte_s


def predict_pixels_s(num_pixels: int) -> float:
    """Seconds of one core for pixels that came decoded."""
    return _FIXED_S + num_pixels * _PREPARED_PIXEL_S
