"""The parts of training that have a right answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.vae_config import CausalVaeConfig
from models.methods.attention.dense import DENSE
from models.methods.samplers.ddim import Consistency
from models.methods.samplers.schedule import NoiseSchedule
from models.training.vdit.clips import SHORT_CLIP, render
from models.training.vdit.conv_muon import orthogonal
from models.training.vdit.distil_stage import SEGMENTS, Text, lesson, lesson_loss, move, noise_between
from models.training.vdit.judge_stage import worsen
from models.training.vdit.latents_stage import read_shards, write_shard
from models.training.vdit.scenes import Mover, Scene
from models.training.vdit.vae_stage import moving, open_time, take_step, to_pixels, whiten
from models.training.vdit.widen import load_narrower

SCHEDULE = NoiseSchedule()


def _vae() -> CausalVae:
    torch.manual_seed(0)
    return CausalVae(CausalVaeConfig(hidden_size=4, hidden_size_mult=(1, 1, 1, 1), num_res_blocks=1, norm_num_groups=2))


def _clips(count: int, frames: int = 9) -> Tensor:
    rng = np.random.default_rng(1)
    scenes = [Scene((Mover("red", "circle", "left"),), "black"), Scene((Mover("blue", "cross", "up"),), "gray")]
    return torch.stack(
        [to_pixels(torch.from_numpy(render(scenes[n % 2], frames, rng)))[..., ::2, ::2] for n in range(count)]
    )


@torch.no_grad()
def test_opening_the_mix_over_time_changes_no_output() -> None:
    vae, clip = _vae(), _clips(1)
    latents = vae.encode(clip).mode()
    decoded = vae.decode(latents)
    open_time(vae, 0.5)
    torch.testing.assert_close(vae.encode(clip).mode(), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.decode(latents), decoded, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_whitening_gives_unit_channels_and_changes_no_clip() -> None:
    vae, clips = _vae(), _clips(4)
    decoded = vae.decode(vae.encode(clips[:1]).mode())
    whiten(vae, clips)
    latents = torch.cat([vae.encode(clip).mode() for clip in clips.split(1)]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(latents), torch.eye(4), atol=1e-2, rtol=0)
    torch.testing.assert_close(vae.decode(vae.encode(clips[:1]).mode()), decoded, atol=1e-3, rtol=1e-3)


def test_pixels_that_differ_from_the_ground_weigh_more_and_all_weigh_one_on_average() -> None:
    pixels = torch.zeros(1, 3, 2, 4, 4)
    pixels[..., 0, 0] = 1.0
    weight = moving(pixels)
    assert float(weight.mean()) == pytest.approx(1.0)
    assert float(weight[0, 0, 0, 0, 0]) == pytest.approx(5 * float(weight[0, 0, 0, 1, 1]))


@torch.no_grad()
def test_more_latent_channels_change_no_clip_at_first() -> None:
    narrow, clip = _vae(), _clips(1)
    wide = CausalVae(replace(narrow.config, z_channels=6, embed_dim=6))
    load_narrower(wide, narrow.state_dict())
    torch.testing.assert_close(wide.encode(clip).mode()[:, :4], narrow.encode(clip).mode(), atol=1e-5, rtol=1e-5)
    latents = wide.encode(clip).mode()
    latents[:, 4:] = 0
    torch.testing.assert_close(wide.decode(latents), narrow.decode(latents[:, :4]), atol=1e-5, rtol=1e-5)


def test_a_step_of_the_autoencoder_reaches_all_of_its_weights() -> None:
    """Under autocast, where parts of it are in bfloat16 and others are not."""
    vae = _vae()
    assert take_step(vae, _clips(1)) > 0
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in vae.parameters())


def test_weights_of_another_autoencoder_are_refused() -> None:
    state = _vae().state_dict()
    state["decoder.conv_out.conv.weight"] = torch.zeros(3, 5, 3, 3, 3)
    with pytest.raises(ValueError, match=r"decoder.conv_out.conv.weight is \(3, 5, 3, 3, 3\)"):
        load_narrower(_vae(), state)


def test_muon_makes_kernels_nearly_orthogonal() -> None:
    torch.manual_seed(1)
    update = orthogonal(torch.randn(6, 2, 3, 3)).flatten(1) / (0.2 * 18**0.5)
    values = torch.linalg.svdvals(update)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.5


def test_noise_between_two_points_is_the_one_that_moves_there() -> None:
    torch.manual_seed(2)
    z, noise = (torch.randn(5, 4, 2, 2, 2, dtype=torch.float64) for _ in range(2))
    now, then = torch.tensor([999, 780, 400, 249, 31]), torch.tensor([749, 749, 249, -1, -1])
    landed = move(SCHEDULE, z, noise, now, then)
    torch.testing.assert_close(noise_between(SCHEDULE, z, landed, now, then), noise)


def test_student_moves_as_its_sampler_does() -> None:
    sampler = Consistency(num_steps=SEGMENTS, schedule=SCHEDULE, segments=SEGMENTS)
    torch.manual_seed(3)
    z, noise = (torch.randn(1, 4, 2, 2, 2) for _ in range(2))
    for step in range(SEGMENTS):
        now = torch.tensor([int(sampler.timestep(step))])
        then = now - SCHEDULE.num_train_steps // SEGMENTS
        torch.testing.assert_close(move(SCHEDULE, z, noise, now, then), sampler.step(z, noise, step))


class _Exact(torch.nn.Module):
    """Predicts the noise of a distribution that is one point: any path of it ends there."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.point = point

    def forward(self, z: Tensor, timestep: Tensor, text: Tensor, mask: Tensor, attention: object = DENSE) -> Tensor:
        squared = SCHEDULE.alphas_cumprod[timestep.long()].reshape(-1, 1, 1, 1, 1)
        return ((z - squared.sqrt() * self.point) / (1 - squared).sqrt()).float()


def test_student_that_is_already_right_has_nothing_to_learn() -> None:
    torch.manual_seed(4)
    point = torch.randn(1, 4, 2, 2, 2, dtype=torch.float64)
    model, empty = _Exact(point), torch.zeros(16, 1, 1)
    text = Text(prompts=empty, mask=empty, nothing=empty, nothing_mask=empty)
    z, timesteps, wanted = lesson(model, model, SCHEDULE, point.expand(16, -1, -1, -1, -1), text, 3.0)  # type: ignore[arg-type]
    loss = lesson_loss(model, SCHEDULE, z, timesteps, wanted, text, DENSE)  # type: ignore[arg-type]
    assert float(loss) < 1e-6


def test_shards_are_read_back_with_their_prompts_and_half_written_ones_are_not(tmp_path: Path) -> None:
    import models.training.vdit.latents_stage as stage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "SHARD", 2)
        write_shard(_vae().eval(), tmp_path / "latents-9-000.safetensors", 0, 9, 0.5)
    (tmp_path / "latents-9-001.draft").write_bytes(b"half")
    latents, prompts = read_shards(tmp_path, 9)
    assert latents.shape == (2, 4, 3, 8, 8)
    assert latents.dtype == torch.float16
    assert len(prompts) == 2


def test_worsened_frames_keep_their_shape_and_range() -> None:
    rng = np.random.default_rng(6)
    clip = render(Scene((Mover("red", "circle", "left"),)), SHORT_CLIP, rng, every=4)
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
    worse = [worsen(frames, rng) for _ in range(20)]
    assert all(one.shape == frames.shape and float(one.min()) >= 0 and float(one.max()) <= 1 for one in worse)
    assert sum(float((one - frames).abs().mean()) > 0.01 for one in worse) > 10
