"""Encoded clips, decoded again: the same pictures, as many, as long."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize("fps", [1, 8, 30, 48, 50, 60, 100, 1000])
@pytest.mark.parametrize("num_frames", [1, 2, 9, 25])
def test_gif_holds_the_same_pictures_and_lasts_as_long(num_frames: int, fps: int) -> None:
    """Browsers show a frame of less than 20 ms for 100: no frame is as short, and of faster clips fewer are there."""
    frames = clip(num_frames)
    encoded = encode_clip(frames, fps, "gif")
    assert encoded.media_type == "image/gif"
    delays_ms, begun_ms = [], 0.0
    with Image.open(io.BytesIO(encoded.data)) as image:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            shown = np.asarray(image.convert("RGB"))
            assert psnr(shown, frames[min(num_frames - 1, round(begun_ms * fps / 1000))]) > 28
            delays_ms.append(image.info["duration"])
            begun_ms += delays_ms[-1]
    assert min(delays_ms) >= 20
    assert len(delays_ms) == (num_frames if fps <= 50 else max(1, round(100 * num_frames / fps) // 2))
    assert sum(delays_ms) == pytest.approx(max(20, 1000 * num_frames / fps), abs=10)


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
