"""When frames of a file are shown. Free of codecs: gateways say how long a clip is, replicas write it.

MP4 counts in fractions of a frame, so frame k is shown from k / fps exactly. GIF counts in hundredths of a second.
"""

from __future__ import annotations

from typing import NamedTuple

_MIN_GIF_DELAY_CS = 2
"""Browsers show a GIF's frame of less than this for ten hundredths."""


class GifTimes(NamedTuple):
    """``frames``: which are shown, by number. ``starts_cs``: when each begins, and last when the clip ends."""

    frames: list[int]
    starts_cs: list[int]


def gif_times(num_frames: int, fps: int) -> GifTimes:
    """Each begins at the hundredth that is nearest to its time, so that no error adds up. Of faster clips than GIF has,
    fewer frames are shown, as evenly as can be."""
    num_shown = max(1, min(num_frames, 100 * num_frames // (_MIN_GIF_DELAY_CS * fps)))
    starts_cs = [_nearest(100 * num_frames * index, fps * num_shown) for index in range(num_shown)]
    end_cs = max(_MIN_GIF_DELAY_CS, _nearest(100 * num_frames, fps))
    return GifTimes([num_frames * index // num_shown for index in range(num_shown)], [*starts_cs, end_cs])


def clip_seconds(num_frames: int, fps: int, output_format: str) -> float:
    """Length of the file."""
    return gif_times(num_frames, fps).starts_cs[-1] / 100 if output_format == "gif" else num_frames / fps


def _nearest(numerator: int, denominator: int) -> int:
    """A fraction of whole numbers, rounded; a half up."""
    return (2 * numerator + denominator) // (2 * denominator)
