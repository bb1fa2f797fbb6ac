"""The recipe of dit-moe-nano: its pictures, its optimiser, its stages; none of it trains for long."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from models.families.dit_moe.config import DitMoeConfig
from models.identity import CHECKPOINTS
from models.registry import find
from models.training.autoencoder import encode, whiten
from models.training.dit_moe import autoencoder, judge, pictures
from models.training.dit_moe import transformer as stage
from models.training.dit_moe.evaluate import Studio, entropy, information, permuted
from models.training.dit_moe.optimizer import Optimizers, orthogonal
from models.training.dit_moe.train import Plan

CHECKPOINT = CHECKPOINTS / "dit-moe-nano"


def test_a_seed_draws_the_same_pictures() -> None:
    one, same, other = pictures.draw(20, 5), pictures.draw(20, 5), pictures.draw(20, 6)
    assert torch.equal(one.pixels, same.pixels)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.pixels, other.pixels)


def test_pictures_are_of_a_colour_on_a_light_ground() -> None:
    drawn = pictures.draw(0, 1, labels=torch.arange(pictures.NUM_CLASSES))
    assert drawn.pixels.shape == (90, 3, 64, 64)
    assert float(drawn.pixels.abs().max()) <= 1.0
    corners = drawn.pixels[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(corners.min()) > 0.6, "nothing touches a corner"
    darkest = drawn.pixels.flatten(2).amin(2).view(6, 15, 3).mean(1)
    assert darkest[pictures.COLOURS.index("red")].argmax() == 0
    assert darkest[pictures.COLOURS.index("green")].argmax() == 1
    assert darkest[pictures.COLOURS.index("blue")].argmax() == 2


def test_held_out_fonts_are_other_digits_and_the_same_shapes() -> None:
    digits, shapes = torch.arange(10), torch.arange(10, 15)
    for labels, is_same in ((digits, False), (shapes, True)):
        seen, held_out = (pictures.draw(0, 3, labels=labels, held_out=held).pixels for held in (False, True))
        assert torch.equal(seen, held_out) is is_same


def test_classes_have_names() -> None:
    assert pictures.class_name(pictures.class_number("green", "7")) == "green 7"
    assert len({pictures.class_name(number) for number in range(pictures.NUM_CLASSES)}) == 90


def test_matrices_of_a_stack_are_made_orthogonal_each() -> None:
    torch.manual_seed(0)
    for shape in ((3, 32, 16), (2, 16, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape))) / (0.2 * 32**0.5)
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


class _Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.ones(2, 4, 4))
        self.bias = nn.Parameter(torch.zeros(4))

    def loss(self, step: int) -> torch.Tensor:
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        return torch.einsum("bi,eoi->beo", x, self.experts).sub(1).square().mean() + (self.bias - 1).square().sum()


def test_an_optimiser_goes_on_from_its_state() -> None:
    whole, resumed = _Stack(), _Stack()
    optimizers = Optimizers(whole, 0.01, warmup=2)
    for step in range(6):
        if step == 3:
            resumed.load_state_dict(whole.state_dict())
            again = Optimizers(resumed, 0.01, warmup=2)
            again.load_state_dict(copy.deepcopy(optimizers.state_dict()))
        whole.loss(step).backward()
        optimizers.step(step / 6, step)
        if step >= 3:
            resumed.loss(step).backward()
            again.step(step / 6, step)
    assert torch.equal(whole.experts, resumed.experts)
    assert torch.equal(whole.bias, resumed.bias)


def test_white_latents_decode_to_the_same() -> None:
    torch.manual_seed(0)
    vae = autoencoder.AutoencoderKL(**autoencoder.CONFIG).eval()
    pixels = pictures.draw(32, 4).pixels
    before = autoencoder.decode(vae, encode(vae, pixels))
    whiten(vae, encode(vae, pixels), vae.post_quant_conv)
    latents = encode(vae, pixels)
    assert torch.allclose(autoencoder.decode(vae, latents), before, atol=1e-3)
    assert torch.allclose(torch.cov(latents.transpose(0, 1).flatten(1)), torch.eye(4), atol=1e-2)


def test_the_judge_is_right_on_fonts_that_it_never_saw(tmp_path: Path) -> None:
    shipped = judge.ClassJudge.load(CHECKPOINT / "judge")
    assert judge.accuracy(shipped, count=1_000) >= 0.99
    shipped.save(tmp_path)
    image = np.ascontiguousarray(pictures.as_bytes(pictures.draw(1, 9).pixels)[0])
    assert judge.ClassJudge.load(tmp_path).labels([image]) == shipped.labels([image])
    with pytest.raises(ValueError, match="no weights"):
        judge.ClassJudge.load(tmp_path / "nowhere")


def test_the_autoencoder_keeps_what_pictures_show() -> None:
    vae = autoencoder.AutoencoderKL.from_pretrained(
        CHECKPOINT / "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    drawn = pictures.draw(64, 78, held_out=True)
    again = autoencoder.decode(vae, encode(vae, drawn.pixels))
    found = judge.ClassJudge.load(CHECKPOINT / "judge").labels(list(pictures.as_bytes(again)))
    assert np.mean(np.array(found) == drawn.labels.numpy()) >= 0.98
    assert autoencoder.psnr(vae, drawn.pixels) > 34


_TINY = DitMoeConfig(
    width=16, depth=1, num_heads=2, num_experts=4, attention="normed", latent_side=4, predicts_variance=False
)


def _train(out: Path, stop_at: int | None = None, **changes: int) -> dict[str, torch.Tensor]:
    """Ten steps of a tiny network; ``stop_at`` kills it after that step."""

    def on_step(done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    random = torch.Generator().manual_seed(0)
    latents = torch.randn(stage.HELD_BACK + 40, 4, 4, 4, generator=random)
    labels = torch.randint(pictures.NUM_CLASSES, (len(latents),), generator=random)
    out.mkdir(exist_ok=True)
    config = stage.TrainConfig(**{"steps": 10, "batch": 8, "save_every": 4, **changes})
    return stage.train(out, latents, labels, config, _TINY, on_step)


def test_training_that_was_killed_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "killed", stop_at=6)
    resumed = _train(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(one, resumed[name]) for name, one in whole.items())
    assert whole["y_embedder.embedding_table.weight"].shape == (pictures.NUM_CLASSES + 1, 16)
    with pytest.raises(ValueError, match="belongs to a run with another configuration"):
        _train(tmp_path / "killed", batch=9)


def test_few_steps_shorten_every_stage() -> None:
    plan = Plan.of(40, 1)
    assert (plan.autoencoder_steps, plan.judge_steps, plan.transformer.steps) == (9, 12, 40)
    assert plan.pictures == 2 * stage.HELD_BACK
    assert Plan.of(None, 1) == Plan()


def test_bits() -> None:
    assert entropy(np.array([1, 1, 1, 1])) == pytest.approx(2.0)
    assert information(np.array([[4, 0], [0, 4]])) == pytest.approx(1.0)
    assert information(np.array([[2, 2], [3, 3]])) == pytest.approx(0.0)


def test_the_checkpoint_draws_what_was_asked_for_and_its_experts_differ() -> None:
    family, variant = find("dit-moe-nano")
    studio = Studio(family, variant)
    assert studio.shares(studio.draw(5, 15, guidance_scale=2.0)).right >= 0.85
    with permuted(studio.blocks):
        assert studio.shares(studio.draw(5, 15, guidance_scale=2.0)).right <= 0.7
    assert studio.shares(studio.draw(5, 15, guidance_scale=2.0)).right >= 0.85, "experts are back in their places"
