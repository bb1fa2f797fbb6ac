"""Training: deterministic, resumable, and its pictures are what they claim to be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from models.checkpoint import read_weights
from models.training.dyn_perceiver import augment
from models.training.dyn_perceiver.digits import HELD_OUT_FONTS, TRAIN_FONTS, drawn, handwritten
from models.training.dyn_perceiver.evaluation import HARD_STRENGTH
from models.training.dyn_perceiver.train import STATE_FILE, Progress, TrainConfig, exit_loss, strengths, train

TINY = TrainConfig(steps=3, batch_size=8, warmup_steps=2, evaluate_every=3, save_every=2)


def interrupt_after(step: int) -> object:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    train(TINY, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "parts", interrupt_after(2))  # type: ignore[arg-type]
    assert (tmp_path / "parts" / STATE_FILE).is_file()
    steps: list[int] = []
    log = train(TINY, tmp_path / "parts", lambda progress: steps.append(progress.step))
    assert steps == [3]  # the first two were not repeated
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "parts" / STATE_FILE).exists()
    assert json.loads((tmp_path / "parts" / "training_log.json").read_text()) == log


def test_an_interrupted_run_of_another_configuration_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, interrupt_after(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another configuration"):
        train(dataclasses.replace(TINY, seed=1), tmp_path)


def test_a_published_variant_cannot_be_trained_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs ImageNet"):
        train(dataclasses.replace(TINY, model="dyn-perceiver-regnety-800mf"), tmp_path)


def test_thread_count_is_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(TINY, num_threads=before + 1), tmp_path, interrupt_after(1))  # type: ignore[arg-type]
    assert torch.get_num_threads() == before


def test_loss_weighs_exits_as_the_paper_and_does_not_teach_the_teacher() -> None:
    config = dataclasses.replace(TINY, label_smoothing=0.0, distillation=0.0)
    labels = torch.tensor([0, 1])
    flat = tuple(torch.zeros(2, 10) for _ in range(4))
    assert exit_loss(flat, labels, config).item() == pytest.approx(3.0 * torch.log(torch.tensor(10.0)).item())
    exits = tuple(torch.randn(2, 10, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(4))
    with_it, without = (
        torch.autograd.grad(exit_loss(exits, labels, dataclasses.replace(config, distillation=d)), exits)
        for d in (0.5, 0.0)
    )
    assert torch.equal(with_it[3], without[3])
    assert not torch.equal(with_it[0], without[0])


def test_strength_zero_only_changes_nothing() -> None:
    ink = handwritten(0).train.ink[:6]
    plain = augment.render(ink, torch.zeros(6), torch.Generator().manual_seed(0))
    # A resampling at the identity and a blur of 0.05 pixels: one grey level of 255 at most.
    torch.testing.assert_close(plain.float(), augment.clean(ink).float(), rtol=0, atol=1.0)


def test_pictures_depend_on_the_generator_only() -> None:
    ink = handwritten(0).train.ink[:6]
    first, again, other = (
        augment.render(ink, torch.full((6,), 0.9), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (6, 32, 32, 3)
    assert first.dtype == torch.uint8


def test_half_of_the_glyphs_are_bent_a_little_and_keep_their_ink() -> None:
    ink = handwritten(0).train.ink[:200]
    bent = augment.warp(ink, torch.Generator().manual_seed(0))
    change = (bent - ink).abs().mean((1, 2))
    is_same = change < 1e-5
    assert 70 < int(is_same.sum()) < 130
    assert float(change[~is_same].max()) < 0.15
    torch.testing.assert_close(bent.mean(), ink.mean(), rtol=0.05, atol=0)


def test_training_shows_as_many_hard_and_plain_pictures_as_it_says() -> None:
    config = dataclasses.replace(TINY, batch_size=4000, clean_share=0.1, hard_share=0.5)
    strength = strengths(config, torch.Generator().manual_seed(0))
    assert float((strength == 0).float().mean()) == pytest.approx(0.1, abs=0.02)
    # The others are at random, and hard by chance three times in ten.
    assert float((strength >= HARD_STRENGTH[0]).float().mean()) == pytest.approx(0.5 + 0.4 * 0.3, abs=0.03)
    assert float(strength.max()) <= HARD_STRENGTH[1]


def test_hard_pictures_come_in_both_polarities() -> None:
    ink = torch.zeros(64, 32, 32)
    ink[:, 8:24, 8:24] = 1
    pictures = augment.render(ink, torch.full((64,), 0.5), torch.Generator().manual_seed(0)).float()
    is_lighter = pictures[:, 14:18, 14:18].mean((1, 2, 3)) > pictures[:, :2, :2].mean((1, 2, 3))
    assert 10 < int(is_lighter.sum()) < 54


def test_fonts_for_testing_are_not_trained_on() -> None:
    assert not set(HELD_OUT_FONTS) & set(TRAIN_FONTS)
    glyphs = drawn(HELD_OUT_FONTS)
    assert glyphs.ink.shape == (10 * len(HELD_OUT_FONTS), 32, 32)
    assert glyphs.labels.tolist() == list(range(10)) * len(HELD_OUT_FONTS)
    assert float(glyphs.ink.amax((1, 2)).min()) > 0.5  # every glyph has ink
