"""How exvideo-nano is made: its clips, its judge, its stages; none of it trains for long."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKLTemporalDecoder

from models.training.autoencoder import encode, whiten
from models.training.exvideo import autoencoder, denoiser, image_encoder, latents, sampling
from models.training.exvideo.denoiser import Plan, Windows
from models.training.exvideo.judge import judge, look
from models.training.exvideo.scenes import (
    COLOURS,
    FAR,
    HELD_OUT,
    LONG_FRAMES,
    NEAR,
    SHAPES,
    Scene,
    bounced,
    render,
    sample_scene,
)
from models.training.exvideo.train import extended_of

pytestmark = pytest.mark.usefixtures("one_thread")


def scenes(count: int, held_out: bool | None = None) -> list[Scene]:
    rng = np.random.default_rng(5)
    return [sample_scene(rng, held_out=held_out) for _ in range(count)]


def windows(vae: AutoencoderKLTemporalDecoder | None = None) -> Windows:
    torch.manual_seed(0)
    vae = vae or AutoencoderKLTemporalDecoder(**autoencoder.CONFIG)
    some = scenes(2)
    stored = torch.stack(
        [encode(vae, autoencoder.to_pixels(torch.from_numpy(render(one, latents.LENGTH)))) for one in some]
    )
    return Windows(stored, some, vae, image_encoder.small_encoder())


# -- clips -----------------------------------------------------------------------------------------------------------


def test_what_moves_bounces_and_stays_in_view() -> None:
    assert bounced(np.array([[NEAR - 1, FAR + 2], [NEAR + 3, NEAR]])).tolist() == [
        [NEAR + 1, FAR - 2],
        [NEAR + 3, NEAR],
    ]
    for scene in scenes(50):
        places = scene.places(400)
        assert places.min() >= NEAR
        assert places.max() <= FAR
        assert np.linalg.norm(np.diff(places, axis=0), axis=1).max() <= scene.speed + 1e-9


def test_training_never_shows_what_is_held_out() -> None:
    assert not any((one.colour, one.shape) in HELD_OUT for one in scenes(200, held_out=False))
    assert all((one.colour, one.shape) in HELD_OUT for one in scenes(20, held_out=True))


def test_motion_bucket_says_the_speed() -> None:
    assert Scene("red", "circle", (10.0, 10.0), (0.6, 0.8)).motion_bucket_id == 128


# -- judge -----------------------------------------------------------------------------------------------------------


def test_judge_is_right_on_rendered_frames() -> None:
    for scene in scenes(60):
        verdict = judge(render(scene, LONG_FRAMES), scene.colour, scene.shape, scene.speed)
        assert verdict.is_kept
        assert verdict.is_smooth
        if not math.isnan(verdict.speed):
            assert verdict.speed == pytest.approx(scene.speed, rel=0.1)


def test_judge_sees_the_centre_colour_and_shape() -> None:
    scene = Scene("blue", "triangle", (12.5, 18.0), (0.5, 0.0))
    seen = look(render(scene, 3))
    assert seen.places == pytest.approx(scene.places(3), abs=0.2)
    assert [COLOURS[number] for number in seen.colours] == ["blue"] * 3
    assert [SHAPES[number] for number in seen.shapes] == ["triangle"] * 3


def test_judge_finds_fault() -> None:
    scene = Scene("red", "triangle", (10.0, 16.0), (0.5, 0.0))
    clip = render(scene, 16)
    other = render(Scene("red", "circle", scene.place, scene.velocity), 16)
    changed = np.concatenate([clip[:8], other[8:]])
    assert judge(changed, "red", "triangle", scene.speed).kept == pytest.approx(0.5)
    assert not judge(clip, "green", "triangle", scene.speed).is_kept
    doubled = np.maximum(clip, clip[:, ::-1, ::-1])
    assert not judge(doubled, "red", "triangle", scene.speed).is_kept, "two objects are not one"
    assert not judge(clip[[0] * 16], "red", "triangle", scene.speed).keeps_moving
    back = clip[[*range(8), *range(8, 0, -1)]]
    assert not judge(back, "red", "triangle", scene.speed).turns_only_at_walls, "it turned in the middle"
    smeared = (clip.astype(float) * 0.5 + np.roll(clip, 4, 2) * 0.5).astype(np.uint8)
    assert not judge(smeared, "red", "triangle", scene.speed).is_kept


# -- stages ----------------------------------------------------------------------------------------------------------


def test_autoencoder_and_image_encoder_take_steps(tmp_path: Path) -> None:
    vae = autoencoder.train(tmp_path, steps=2)
    encoder = image_encoder.train(tmp_path, steps=1)
    pixels = autoencoder.sample_pixels(np.random.default_rng(0), 1, 2)
    assert encode(vae, pixels).shape == (2, 4, 8, 8)
    assert encoder(image_encoder.inputs(pixels)).image_embeds.shape == (2, image_encoder.WIDTH)


def test_white_latents_have_no_correlation() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(**autoencoder.CONFIG)
    pixels = autoencoder.sample_pixels(np.random.default_rng(0), 8, 1)
    whiten(vae, encode(vae, pixels), vae.decoder.conv_in)
    found = encode(vae, pixels).transpose(0, 1).flatten(1)
    assert found.mean(1).abs().max() < 1e-2
    assert torch.allclose(torch.cov(found), torch.eye(4), atol=2e-2)


def test_latents_are_kept_and_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(**autoencoder.CONFIG)
    made, drawn = latents.make(tmp_path, vae, 1)
    again, same = latents.make(tmp_path, vae, 1)
    assert made.shape == (1, latents.LENGTH, 4, 8, 8)
    assert torch.equal(made, again)
    assert drawn == same


def test_a_batch_has_what_svd_is_told() -> None:
    some = windows()
    batch = some.draw(16, 8, np.random.default_rng(2))
    assert batch.clips.shape == (16, 8, 4, 8, 8)
    assert batch.ids.shape == (16, 3)
    assert {one.motion_bucket_id for one in scenes(2)} >= set(batch.ids[:, 1].tolist())
    dropped = batch.embeds.flatten(1).abs().sum(1) == 0
    assert 0 < dropped.sum() < 16
    assert torch.equal(dropped, batch.first.flatten(1).abs().sum(1) == 0), "both or none"


def test_base_resumes_and_the_extension_trains_temporal_blocks_alone(tmp_path: Path) -> None:
    some = windows()
    plan = Plan("base", 8, 1, steps=2, lr=1e-3, save_every=1)

    def killed(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoiser.train(tmp_path, some, denoiser.fresh(), plan, killed)
    steps: list[int] = []
    base = denoiser.train(tmp_path, some, denoiser.fresh(), plan, lambda done, total: steps.append(done))
    assert steps == [2], "the first step is not taken again"
    with pytest.raises(ValueError, match="belongs to a run with another configuration"):
        denoiser.train(tmp_path, some, denoiser.fresh(), replace(plan, seed=7))
    extended = extended_of(base)
    before = {name: one.clone() for name, one in extended.state_dict().items()}
    denoiser.train(tmp_path, some, extended, Plan("extension", 10, 1, steps=2, lr=1e-3))
    changed = {name for name, one in extended.state_dict().items() if not torch.equal(one, before[name])}
    parts = ("pos_table", "pos_conv", "time_pos_embed", "temporal_transformer_blocks")
    assert changed
    assert all(any(part in name for part in parts) for name in changed)


def test_latents_of_another_number_of_clips_are_not_taken_for_these(tmp_path: Path) -> None:
    vae = AutoencoderKLTemporalDecoder(**autoencoder.CONFIG)
    stored, drawn = latents.make(tmp_path, vae, 2)
    again, _ = latents.make(tmp_path, vae, 2)
    assert len(drawn) == 2
    assert torch.equal(stored, again)
    with pytest.raises(ValueError, match=r"has 2 clips, not 1; remove it"):
        latents.make(tmp_path, vae, 1)


def test_analytic_init_starts_about_the_mean() -> None:
    noise = torch.randn(4, 3, 4, 8, 8)
    plain = sampling.Start(10.0).latents(noise)
    about = sampling.Start(10.0, torch.ones(40, 4, 8, 8), 0.5).latents(noise)
    assert torch.allclose(plain, noise * math.sqrt(101.0))
    assert torch.allclose(about, 1.0 + noise * math.sqrt(100.5))
