"""The registry and everything that gateways and decode workers import must be light."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from models.families.texthawk2.tiling import Grid
from models.registry import CHAT_MODELS, find, get_chat_spec


def test_light_modules_import_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, models.registry, models.operating_points, models.identity, "
        "models.pictures, models.families.dyn_perceiver.family, models.methods.early_exit.calibration\n"
        "heavy = {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_id_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"dyn-perceiver-nano.*dyn-perceiver-mobilenetv3-x075"):
        find("resnet-152")


def test_weights_can_be_elsewhere() -> None:
    assert find("dyn-perceiver-nano", Path("here"))[1].weights == Path("here")


def test_labels_have_to_match_the_classes() -> None:
    with pytest.raises(ValueError, match="2 labels for 10 classes"):
        dataclasses.replace(find("dyn-perceiver-nano")[1].io, labels=("0", "1"))


def test_class_without_a_name_is_called_by_its_number() -> None:
    assert find("dyn-perceiver-nano")[1].io.label(7) == "7"
    assert find("dyn-perceiver-regnety-800mf")[1].io.label(7) == "class-7"


def test_chat_models_are_known_by_family_and_variant() -> None:
    assert set(CHAT_MODELS) == {"texthawk2-nano", "texthawk2-7b"}
    assert all(model_id == f"{spec.family}-{spec.variant}" == spec.id for model_id, spec in CHAT_MODELS.items())


def test_unknown_chat_model_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown chat model 'dyn-perceiver-nano'.*texthawk2-nano, texthawk2-7b"):
        get_chat_spec("dyn-perceiver-nano")


def test_largest_image_of_the_published_chat_model_has_as_many_tokens_as_the_paper_says() -> None:
    spec = get_chat_spec("texthawk2-7b")
    assert spec.image_tokens(Grid(12, 6)) == 1168
    assert spec.tiling.max_tiles * spec.tokens_per_tile == 1168


def test_chat_model_must_hold_its_largest_image() -> None:
    with pytest.raises(ValueError, match="1168 tokens and max_model_len is 1168"):
        dataclasses.replace(get_chat_spec("texthawk2-7b"), max_model_len=1168)


def test_weights_of_a_chat_model_can_be_elsewhere() -> None:
    assert get_chat_spec("texthawk2-7b").with_checkpoint(Path("here")).checkpoint_dir == Path("here")
