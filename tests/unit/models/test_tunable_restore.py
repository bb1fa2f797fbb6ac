"""The method of tunable-restore: what strengths mean, how they are learnt, and what the shipped weights do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoint import read_weights
from models.contract import Point
from models.families.tunable_restore.network import Network, Runner, build, random_network
from models.identity import checkpoint_sha256
from models.registry import find
from models.training.tunable_restore import degrade, pictures, train

FAMILY, NANO = find("tunable-restore-nano")


@pytest.fixture(scope="module")
def network() -> Network:
    """Random weights: what holds for them holds for all."""
    return random_network(NANO).eval().requires_grad_(False)


def noise(rows: int, height: int, width: int) -> Tensor:
    random = np.random.default_rng(height * width)
    return torch.from_numpy(random.integers(0, 256, (rows, height, width, 3), np.uint8))


def at(denoise: float, sharpen: float) -> Point:
    return FAMILY.check_point({"denoise": denoise, "sharpen": sharpen})


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 31), (30, 13), (47, 64)])
def test_strengths_of_zero_give_the_picture_back_whatever_its_size_and_its_neighbours(
    network: Network, height: int, width: int
) -> None:
    batch = noise(3, height, width)
    made = Runner(network, NANO).forward(batch, [at(0, 0), at(1, 0.5), at(0, 0)])["image"]
    assert torch.equal(made[0], batch[0])
    assert torch.equal(made[2], batch[2])
    assert not torch.equal(made[1], batch[1])


def test_rows_have_strengths_of_their_own(network: Network) -> None:
    runner, batch = Runner(network, NANO), noise(1, 33, 40).expand(3, -1, -1, -1)
    points = [at(1, 0), at(0, 1), at(0.3, 0.6)]
    together = runner.forward(batch, points)["image"].int()
    assert len({row.numpy().tobytes() for row in together}) == 3
    for row, point in enumerate(points):
        alone = runner.forward(batch[:1], [point])["image"].int()
        assert (together[row : row + 1] - alone).abs().max() <= 1  # rounded the other way


def test_the_multi_loss_teaches_what_the_weighted_sum_of_all_losses_does() -> None:
    random = torch.Generator().manual_seed(0)
    sharp, soft, given, made = (torch.rand(2, 3, 8, 8, generator=random) for _ in range(4))
    made.requires_grad_()
    targets, shares = degrade.objectives(sharp, soft, given), degrade.weights(0.3, 0.8)
    losses = torch.stack([(made - target).square().mean((1, 2, 3)) for target in targets])
    (summed,) = torch.autograd.grad((shares @ losses).sum(), made)
    (ours,) = torch.autograd.grad(degrade.multi_loss(made, targets, shares), made)
    for row in range(2):  # a logarithm scales a row's gradient and leaves its direction
        cosine = torch.nn.functional.cosine_similarity(ours[row].flatten(), summed[row].flatten(), 0)
        assert cosine.item() == pytest.approx(1, abs=1e-5)


def test_each_corner_of_the_strengths_has_one_objective() -> None:
    sharp, soft, given = (torch.full((1, 3, 2, 2), value) for value in (0.5, 0.375, 0.75))
    targets = degrade.objectives(sharp, soft, given)
    wanted = {(0, 0): 0.75, (1, 0): 0.375, (0, 1): 0.875, (1, 1): 0.5}
    for corner, value in wanted.items():
        shares = degrade.weights(*corner)
        assert shares.max() == shares.sum() == 1
        assert torch.einsum("o,obchw->bchw", shares, targets).unique().tolist() == [value]


def test_no_picture_and_no_font_is_in_two_splits() -> None:
    splits = [{name for names in split.values() for name in names} for split in (pictures.TRAIN, pictures.VALIDATION)]
    splits.append({name for names in pictures.TEST.values() for name in names})
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert not set(pictures.TRAIN_FONTS) & set(pictures.TEST_FONTS)


TINY = train.TrainConfig(steps=4, batch_size=4, side=32, save_every=2)


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def interrupt(what: str, step: int, steps: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    train.train(TINY, NANO, tmp_path / "whole", print)
    with pytest.raises(KeyboardInterrupt):
        train.train(TINY, NANO, tmp_path / "parts", interrupt)
    with pytest.raises(ValueError, match="another configuration"):
        train.train(dataclasses.replace(TINY, seed=1), NANO, tmp_path / "parts", print)
    train.train(TINY, NANO, tmp_path / "parts", print)
    whole, parts = read_weights(tmp_path / "whole"), read_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not (tmp_path / "parts" / train.STATE_FILE).exists()


def test_the_card_is_of_these_weights_which_beat_the_best_tuned_filters_by_a_decibel() -> None:
    assert NANO.weights is not None
    found = json.loads((NANO.weights / "evaluation.json").read_text())
    assert found["checkpoint_sha256"] == checkpoint_sha256(NANO.weights)
    assert len(found["psnr_db"]) == 8
    for row in found["psnr_db"]:
        others = [row[name] for name in ("gaussian", "median", "unsharp") if name in row]
        assert row["ours"] >= max(others) + 1, (row["pictures"], row["damage"])
    assert all(row["is_monotonic_for_each_picture"] and row["is_input_at_zero"] for row in found["strengths"])
    assert len({row["macs"] for row in found["cost"]}) == 1


def test_the_weights_do_what_the_card_says() -> None:
    from models.training.tunable_restore import evaluate

    found = json.loads((Path(NANO.weights or "") / "evaluation.json").read_text())
    runner = Runner(build(NANO), NANO)
    clean = evaluate.held_out()["rendered text"]
    for row in (row for row in found["psnr_db"] if row["pictures"] == "rendered text"):
        given, strengths = evaluate.soft(clean["page 1"]), (0.0, 1.0)
        if row["damage"].startswith("noise"):
            given, strengths = evaluate.noisy(clean["page 1"], float(row["damage"].split()[1]), 0), (1.0, 0.0)
        made = evaluate.restored(runner, given, *strengths)
        assert evaluate.psnr(made, clean["page 1"]) == pytest.approx(row["each"]["page 1"]["ours"], abs=0.05)
