"""Training goes on from any checkpoint, its own or a shipped one, and leaves frozen parts alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.training import products
from models.training.log import LOG_FILE, TrainingLog
from models.training.texthawk2 import language_stage as stage
from models.training.texthawk2.batches import Encoder, collate
from models.training.texthawk2.export import export
from models.training.texthawk2.synth.charset import CHINESE
from models.training.texthawk2.synth.dense import dense_tile
from models.training.texthawk2.synth.examples import TASKS
from models.training.texthawk2.vision_stage import shown_again
from tests.support.synth_fonts import DEJAVU


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``models.training.texthawk2.export`` writes it: half precision, without training's heads."""
    folder = tmp_path_factory.mktemp("shipped")
    tokenizer = build_nano_tokenizer(CHINESE)
    stage.build_model(tokenizer).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _args(source: Path | None, freeze: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(source=source, vision=None, freeze=freeze, lr=1e-3, tower_lr=None, final=0.1)


def _dense(number: int = 2) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1)
    tiles, labels = zip(*(dense_tile(rng, "train", DEJAVU) for _ in range(number)), strict=True)
    return torch.from_numpy(np.stack(tiles)), torch.from_numpy(np.stack(labels)).flatten(1).long()


def test_shipped_weights_are_trained_in_full_precision_with_fresh_heads(shipped: Path) -> None:
    tokenizer = build_nano_tokenizer(CHINESE)
    model, heads = stage.build_parts(_args(shipped), tokenizer)
    again, other_heads = stage.build_parts(_args(shipped), tokenizer)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for first, second in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(heads["places"].fc.weight, other_heads["places"].fc.weight)


def test_trainings_own_folder_has_its_heads_too(shipped: Path, tmp_path: Path) -> None:
    tokenizer = build_nano_tokenizer(CHINESE)
    model, heads = stage.build_parts(_args(shipped), tokenizer)
    stage.save(model, heads, tokenizer, tmp_path)
    _, again = stage.build_parts(_args(tmp_path), tokenizer)
    for first, second in zip(heads.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second)


def test_only_fresh_heads_learn_while_the_model_is_frozen(shipped: Path) -> None:
    args = _args(shipped, "model")
    model, heads = stage.build_parts(args, build_nano_tokenizer(CHINESE))
    stage.freeze(model, args.freeze)
    before = [parameter.clone() for parameter in model.parameters()]
    head = heads["windows"].fc.weight.clone()
    (optimizer,) = stage.build_optimizers(args, model, heads)
    stage.take_step(model, heads, None, _dense())
    optimizer.step(0.0, 0)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert not torch.equal(head, heads["windows"].fc.weight)


@pytest.mark.parametrize(
    ("parts", "trained"),
    [
        (None, {"vision_tower", "connector", "language_model"}),
        ("tower", {"connector", "language_model"}),
        ("vision", {"language_model"}),
        ("model", set()),
    ],
)
def test_frozen_parts(parts: str | None, trained: set[str], shipped: Path) -> None:
    model = stage.load_model(shipped, build_nano_tokenizer(CHINESE))
    stage.freeze(model, parts)
    assert {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad} == trained


def test_weights_of_another_vocabulary_are_refused(shipped: Path) -> None:
    with pytest.raises(ValueError, match=r"has \d+ tokens, other than training's \d+; train anew"):
        stage.load_model(shipped, build_nano_tokenizer(CHINESE[:10]))


def test_log_goes_with_the_weights_from_run_to_checkpoint_to_run(shipped: Path, tmp_path: Path) -> None:
    run, checkpoint, next_run = (tmp_path / name for name in ("run", "checkpoint", "next"))
    tokenizer = build_nano_tokenizer(CHINESE)
    model, heads = stage.build_parts(_args(shipped), tokenizer)
    run.mkdir()
    TrainingLog(run / LOG_FILE).write(step=100, loss=1.5)
    stage.save(model, heads, tokenizer, run)
    export(run, checkpoint)
    next_run.mkdir()
    stage.continue_log(checkpoint, next_run)
    TrainingLog(next_run / LOG_FILE).write(step=100, loss=1.0)
    stage.continue_log(checkpoint, next_run)  # begun already: as it is
    assert [json.loads(line)["loss"] for line in (next_run / LOG_FILE).read_text().splitlines()] == [1.5, 1.0]


@pytest.mark.parametrize("is_half", [False, True])
def test_frozen_eyes_look_once_and_the_answers_are_learnt_as_from_the_pictures(
    is_half: bool, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_is_bfloat16_faster", lambda: is_half)
    tokenizer = build_nano_tokenizer(CHINESE)
    args = argparse.Namespace(**vars(_args(shipped, "vision")), shows=2, seed=0)
    model, heads = stage.build_parts(args, tokenizer)
    stage.freeze(model, args.freeze)
    encoder, rng = Encoder(tokenizer, 12, 6), np.random.default_rng(3)
    batch = collate([encoder(TASKS[name](rng, "train", DEJAVU)) for name in ("word", "two_pictures")], 0)
    looked = next(stage.looked_at(model, iter([batch] * 300), args))
    assert looked.tokens is not None
    assert len(looked.tiles) == 0
    expected, found = (stage.losses(model, heads, one)[0] for one in (batch, looked))
    assert torch.allclose(expected, found, rtol=1e-2 if is_half else 1e-3)
    found.backward()
    assert all((value.grad is None) == (not value.requires_grad) for value in model.language_model.parameters())


def test_each_thing_is_shown_so_often_and_not_in_a_row() -> None:
    made = iter(range(10_000))
    shown = shown_again(lambda: next(made), 3, np.random.default_rng(0), kept=50)
    first = [next(shown) for _ in range(3000)]
    times = np.bincount(first)
    assert times.max() == 3
    assert len(times) == pytest.approx(1000 + 50 * 2 / 3, abs=25), "but for those that still wait"
    assert np.mean(np.diff(first) == 0) < 0.05


def test_what_is_shown_once_comes_in_order() -> None:
    made = iter(range(100))
    shown = shown_again(lambda: next(made), 1, np.random.default_rng(0), kept=50)
    assert [next(shown) for _ in range(20)] == list(range(20))


@pytest.mark.parametrize("num_tiles", [1, 7, 8, 20, 48])
def test_two_dense_tiles_in_five_are_of_larger_pictures(num_tiles: int) -> None:
    counts = [rows * columns + (rows * columns > 1) for rows, columns in stage.dense_grids(num_tiles)]
    assert sum(counts) == num_tiles
    assert sum(count for count in counts if count > 1) <= 0.4 * num_tiles
    assert (max(counts) > 1) == (num_tiles >= 8)


def test_dense_losses_make_no_tensor_beside_the_device_of_the_model(shipped: Path) -> None:
    """A GPU's would fail as "meta" does."""
    model, heads = (part.to("meta") for part in stage.build_parts(_args(shipped), build_nano_tokenizer(CHINESE)))
    pixels, labels = dense_tile(np.random.default_rng(0), "train", DEJAVU)
    tiles, places = torch.from_numpy(pixels.copy())[None].to("meta"), torch.from_numpy(labels).flatten()[None].long()
    loss = stage.dense_losses(model, heads, tiles, places.to("meta"))
    loss.backward()
    assert loss.device.type == "meta"
    assert all(value.grad.device.type == "meta" for value in model.vision_tower.parameters() if value.grad is not None)
    with pytest.raises(RuntimeError, match="device"):
        stage.dense_losses(model, heads, tiles, places)
