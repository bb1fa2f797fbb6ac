"""Encoded clips, decoded again: the same pictures, as many, as long."""

from __future__ import annotations

import io
import struct
import tempfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from serving.media.clip_timing import clip_seconds
from serving.replica.job.base import Frames
from serving.replica.job.outputs import encode_clip, encode_picture, encode_thumbnail


def clip(num_frames: int = 29, height: int = 64, width: int = 64) -> Frames:
    """A coloured square that moves over a gradient."""
    rows, columns = np.mgrid[0:height, 0:width]
    ground = np.stack([rows * 255 // height, columns * 255 // width, np.full_like(rows, 60)], -1).astype(np.uint8)
    frames = np.repeat(ground[None], num_frames, 0)
    for index in range(num_frames):
        left = index * max(1, width - 16) // num_frames
        frames[index, 8:20, left : left + 12] = (230, 40, 30)
    return frames


def psnr(one: Frames, other: Frames) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


def decode(data: bytes) -> tuple[Frames, Any]:
    opened: Any = av.open(io.BytesIO(data))
    with opened as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        facts = (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate), container.duration / 1e6)
    return frames, facts


@pytest.mark.parametrize("fps", [8, 24])
@pytest.mark.parametrize("num_frames", [1, 29])
def test_mp4_holds_the_same_pictures(num_frames: int, fps: int) -> None:
    frames = clip(num_frames)
    encoded = encode_clip(frames, fps, "mp4")
    assert encoded.media_type == "video/mp4"
    decoded, (codec, pixels, rate, duration_s) = decode(encoded.data)
    assert decoded.shape == frames.shape
    assert psnr(decoded, frames) > 30
    for channel in range(3):  # colours are those that went in: wrong matrices shift them by tens
        assert abs(float(decoded[..., channel].mean()) - float(frames[..., channel].mean())) < 2
    assert (codec, pixels, rate) == ("h264", "yuv420p", fps)
    assert duration_s == pytest.approx(num_frames / fps, abs=0.01)


def test_index_of_an_mp4_comes_before_its_pictures() -> None:
    data = encode_clip(clip(), 8, "mp4").data
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_get_one_more_row_and_column() -> None:
    frames = clip(3, 33, 47)
    decoded, _facts = decode(encode_clip(frames, 8, "mp4").data)
    assert decoded.shape == (3, 34, 48, 3)
    assert psnr(decoded[:, :33, :47], frames) > 28


def test_same_frames_make_the_same_file() -> None:
    assert encode_clip(clip(9), 8, "mp4").data == encode_clip(clip(9), 8, "mp4").data


FPS = [*range(1, 61), 100, 240, 1000]
LENGTHS = [1, 2, 3, 8, 29, 61]


@pytest.mark.parametrize("fps", FPS)
def test_every_frame_of_an_mp4_is_shown_at_its_time(fps: int) -> None:
    """Of still pictures, too, which the encoder reorders: the first frame's delay is then left out by an edit."""
    for num_frames, size in [(n, 16) for n in LENGTHS] + [(3, 17)]:
        for frames in (clip(num_frames, size, size + 32), np.full((num_frames, size, 48, 3), 90, np.uint8)):
            data = encode_clip(frames, fps, "mp4").data
            opened: Any = av.open(io.BytesIO(data))
            with opened as container:
                stream = container.streams.video[0]
                decoded = list(container.decode(stream))
                assert [frame.pts * stream.time_base for frame in decoded] == [
                    Fraction(index, fps) for index in range(num_frames)
                ]
                assert decoded[-1].duration * stream.time_base == Fraction(1, fps)
                assert stream.duration * stream.time_base == Fraction(num_frames, fps)
                assert abs(container.duration - 1e6 * num_frames / fps) <= 1  # in microseconds
            assert movie_duration(data) == Fraction(num_frames, fps)
            assert clip_seconds(num_frames, fps, "mp4") == num_frames / fps


def movie_duration(data: bytes) -> Fraction:
    """As the movie's header says it, which players show."""
    at = data.index(b"mvhd") + 16
    units_per_s, units = struct.unpack(">II", data[at : at + 8])
    return Fraction(units, units_per_s)


@pytest.mark.parametrize("fps", FPS)
def test_every_frame_of_a_gif_is_shown_within_half_a_hundredth_of_its_time(fps: int) -> None:
    """Browsers show a frame of less than 20 ms for 100: no frame is as short, and of faster clips fewer are there."""
    for num_frames in LENGTHS:
        frames = np.broadcast_to(4 * np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, 7, 5, 3))
        encoded = encode_clip(frames, fps, "gif")
        assert encoded.media_type == "image/gif"
        shown, starts_cs = gif_frames(encoded.data)
        assert min(end - start for start, end in pairwise(starts_cs)) >= 2
        assert starts_cs[-1] / 100 == clip_seconds(num_frames, fps, "gif")
        assert abs(starts_cs[-1] - max(2, 100 * num_frames / fps)) <= 0.5
        numbers = [int(frame[0, 0, 0]) // 4 for frame in shown]
        if fps <= 50:
            assert numbers == list(range(num_frames))
            late_cs = [abs(start - 100 * index / fps) for index, start in enumerate(starts_cs[:-1])]
            assert max(late_cs) <= 0.5
        else:
            assert len(numbers) == max(1, 50 * num_frames // fps)
            late_cs = [abs(start - 100 * number / fps) for number, start in zip(numbers, starts_cs, strict=False)]
            assert max(late_cs) < 0.5 + 100 / fps


def gif_frames(data: bytes) -> tuple[list[Frames], list[int]]:
    """Pictures, and when each begins and the last one ends."""
    shown, starts_cs = [], [0]
    with Image.open(io.BytesIO(data)) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB")))
            starts_cs.append(starts_cs[-1] + image.info["duration"] // 10)
    return shown, starts_cs


def test_gif_holds_the_same_pictures() -> None:
    frames = clip(9)
    shown, _starts_cs = gif_frames(encode_clip(frames, 8, "gif").data)
    assert all(psnr(one, other) > 28 for one, other in zip(shown, frames, strict=True))


@pytest.mark.parametrize("fps", [8, 24, 60])
def test_gif_of_a_still_picture_lasts_as_long(fps: int) -> None:
    data = encode_clip(np.full((29, 8, 8, 3), 90, np.uint8), fps, "gif").data
    shown, starts_cs = gif_frames(data)
    assert (len(shown), starts_cs[-1] / 100) == (1, clip_seconds(29, fps, "gif"))


@pytest.mark.parametrize(("max_side", "size"), [(None, (80, 60)), (40, (40, 30)), (200, (80, 60))])
def test_thumbnail_is_a_jpeg_no_larger_than_asked(max_side: int | None, size: tuple[int, int]) -> None:
    frame = clip(1, 60, 80)[0]
    encoded = encode_thumbnail(frame, max_side)
    with Image.open(io.BytesIO(encoded.data)) as image:
        assert (image.format, image.size) == ("JPEG", size)
        assert psnr(np.asarray(image.resize((80, 60))), frame) > 20


def test_picture_comes_back_as_it_was() -> None:
    picture = clip(1, 60, 80)[0]
    encoded = encode_picture(picture)
    assert encoded.media_type == "image/png"
    with Image.open(io.BytesIO(encoded.data)) as image:
        assert np.array_equal(np.asarray(image), picture)


@pytest.mark.parametrize(
    ("frames", "fps", "output_format"),
    [
        (np.zeros((2, 8, 8), np.uint8), 8, "mp4"),
        (np.zeros((0, 8, 8, 3), np.uint8), 8, "mp4"),
        (np.zeros((2, 8, 8, 3), np.float32), 8, "mp4"),
        (np.zeros((1, 2, 9000, 3), np.uint8), 8, "mp4"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "gif"),
        (np.zeros((2, 8, 8, 3), np.uint8), 8, "avi"),
    ],
)
def test_what_is_no_clip_is_refused(frames: Any, fps: int, output_format: str) -> None:
    with pytest.raises(ValueError, match=r"need|limit"):
        encode_clip(frames, fps, output_format)


def test_clip_is_encoded_where_no_disk_has_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert encode_clip(np.zeros((2, 16, 16, 3), np.uint8), 8, "mp4").data[4:8] == b"ftyp"
