"""What training reads and writes: shipped weights as stages leave them, prompts of an evaluation, the card's log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.families.vdit.loading import load_transformer
from models.identity import CHECKPOINTS
from models.training.vdit.card import LOG, write_card
from models.training.vdit.distil_stage import moved_along, row_chances
from models.training.vdit.dit_stage import HELD_BACK
from models.training.vdit.evaluate import Asked, Made, _decibels_between, held_out_prompts
from models.training.vdit.export import export
from models.training.vdit.unpack import unpack

SHIPPED = CHECKPOINTS / "vdit-nano"


def test_shipped_weights_come_back_from_what_they_are_unpacked_to(tmp_path: Path) -> None:
    unpack(SHIPPED, tmp_path / "training")
    export(tmp_path / "training", tmp_path / "again")
    for part in ("teacher", "vae", "text_encoder", "judge"):
        files = sorted((SHIPPED / part).glob("*.safetensors"))
        assert files, part
        for file in files:
            shipped, again = load_file(file), load_file(tmp_path / "again" / part / file.name)
            assert shipped.keys() == again.keys(), part
            assert all(torch.equal(shipped[name], again[name]) for name in shipped), part


def test_a_student_moves_as_its_teacher_did() -> None:
    teacher = load_transformer(SHIPPED / "teacher")
    student = load_transformer(SHIPPED / "student").state_dict()
    for name, tensor in moved_along(SHIPPED, teacher).items():
        torch.testing.assert_close(tensor, student[name], atol=1e-6, rtol=1e-5)
    bias = teacher.proj_out.bias
    before = bias.clone()
    bias += 1.0
    moved = moved_along(SHIPPED, teacher)["proj_out.bias"] - student["proj_out.bias"]
    torch.testing.assert_close(moved, bias - before, atol=1e-5, rtol=1e-5)


def test_lessons_have_as_many_objects_as_asked_for_and_none_that_are_held_back() -> None:
    prompts = ["a red circle moves left"] * (HELD_BACK + 10) + [
        "a red circle moves left and a blue cross moves up"
    ] * 90
    chances = row_chances(prompts, 0.3)
    assert float(chances[:HELD_BACK].sum()) == 0.0
    assert float(chances[HELD_BACK : HELD_BACK + 10].sum()) == pytest.approx(0.7)
    assert float(chances[HELD_BACK + 10 :].sum()) == pytest.approx(0.3)


def test_fewer_prompts_are_the_first_of_more_with_the_same_seeds() -> None:
    many, few = held_out_prompts(8, 4), held_out_prompts(3, 2)
    assert few == [*many[:3], *many[8:10]]
    assert len({one.seed for one in many}) == 12
    assert [len(one.scene.movers) for one in many] == [1] * 8 + [2] * 4


def test_clips_are_compared_with_those_of_the_same_prompt() -> None:
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    asked = held_out_prompts(2, 1)

    def made(chosen: list[Asked], clips: list[np.ndarray]) -> Made:  # type: ignore[type-arg]
        return Made(asked=chosen, clips=clips, verdicts=[], seconds=0.0)

    twin = made([asked[0], asked[2]], [black, white])
    assert _decibels_between(made(asked, [black, black, black]), twin) == [99.0, 0.0]


def test_a_card_counts_earlier_runs_whose_logs_are_gone(tmp_path: Path) -> None:
    checkpoint, training = tmp_path / "checkpoint", tmp_path / "training"
    training.mkdir()
    checkpoint.mkdir()
    (checkpoint / "judge").symlink_to(SHIPPED / "judge")
    one = {"count": 1, "right": 1.0, "colour": 1.0, "shape": 1.0, "direction": 1.0, "background": 1.0}
    settings = {"student 4": {"variant": "student", "attention": "dense", "one_object": one}}
    bounds = {"rendered": {"one_object": one}, "autoencoder": {"one_object": one}, "autoencoder_psnr_db": 28.0}
    (checkpoint / "evaluation.json").write_text(json.dumps({"settings": settings, "bounds": bounds}))
    np.savez(checkpoint / "samples.npz", **{"student 4": np.zeros((1, 29, 64, 64, 3), np.uint8)})
    (checkpoint / LOG).write_text(json.dumps({"earlier": {"teacher": {"steps": 100, "minutes": 2.0}}, "logs": {}}))
    (training / "teacher_log.jsonl").write_text('{"seconds": 60.0, "step": 50, "loss": 0.5}\n')
    for _ in range(2):  # the second time counts nothing twice
        write_card(checkpoint, training)
    assert "| teacher | 150 | 3.0 |" in (checkpoint / "README.md").read_text()
