"""The committed exvideo-nano: a folder of SVD with ExVideo's overlay, and the least that its clips must show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from models.identity import CHECKPOINTS
from models.training.exvideo.autoencoder import decode, encode, psnr, to_pixels
from models.training.exvideo.evaluate import figures, firsts, held_out_scenes
from models.training.exvideo.export import load_parts, load_statistics
from models.training.exvideo.sampling import sample, sample_windows, to_uint8
from models.training.exvideo.scenes import FRAMES, LONG_FRAMES, render

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning"
    ),  # diffusers' scheduler, this numpy
]
FOLDER = CHECKPOINTS / "exvideo-nano"


@pytest.mark.parametrize("is_extended", [False, True])
def test_eight_frames_keep_what_the_first_one_shows(is_extended: bool) -> None:
    scenes = held_out_scenes(8)
    buckets = [scene.motion_bucket_id for scene in scenes]
    parts = load_parts(FOLDER, is_extended=is_extended)
    clips = sample(parts, firsts(scenes), buckets, FRAMES, steps=8, guidance=1.0)
    found = figures(clips, scenes)
    assert found["frames_kept"] >= 0.9
    assert found["smooth"]["value"] >= 0.5
    assert 0.7 <= found["speed_of_asked"] <= 1.3


def test_forty_frames_of_the_extended_model_keep_what_the_first_one_shows_and_move_on() -> None:
    scenes = held_out_scenes(3, is_long=True)
    parts, buckets = load_parts(FOLDER, is_extended=True), [scene.motion_bucket_id for scene in scenes]
    clips = sample(parts, firsts(scenes), buckets, LONG_FRAMES, steps=8, guidance=1.0)
    found = figures(clips, scenes)
    assert found["frames_kept"] >= 0.9
    assert found["smooth"]["value"] >= 0.6
    assert 0.8 <= found["speed_of_asked"] <= 1.2


def test_windows_chain_to_the_length() -> None:
    scenes = held_out_scenes(1)
    parts = load_parts(FOLDER, is_extended=False)
    (clip,) = sample_windows(parts, firsts(scenes), [128], 11, FRAMES, steps=2, guidance=1.0)
    assert clip.shape == (11, 32, 32, 3)
    assert np.array_equal(clip[0], firsts(scenes)[0])


def test_the_autoencoder_keeps_what_clips_show() -> None:
    parts, scenes = load_parts(FOLDER, is_extended=False), held_out_scenes(6)
    pixels = [to_pixels(torch.from_numpy(render(scene, 8))) for scene in scenes]
    again = [to_uint8(decode(parts.vae, encode(parts.vae, one), 8)) for one in pixels]
    assert figures(again, scenes)["kept"]["value"] == 1.0
    assert psnr(parts.vae, torch.cat(pixels), 8) > 33


def test_statistics_cover_the_longest_clip() -> None:
    mean, variance = load_statistics(FOLDER)
    assert mean.shape == (LONG_FRAMES, 4, 8, 8)
    assert variance == pytest.approx(1.0, abs=0.2)
