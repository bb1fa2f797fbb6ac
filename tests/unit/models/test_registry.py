"""The registry and everything that gateways and decode workers import must be light."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from models.registry import MODELS, get_spec


def test_light_modules_import_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, models.registry, models.operating_points, models.identity, models.dyn_perceiver.processor, "
        "models.dyn_perceiver.config, models.early_exit.calibration\n"
        "heavy = {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_id_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"dyn-perceiver-nano.*dyn-perceiver-mobilenetv3-x075"):
        get_spec("resnet-152")


def test_ids_are_family_and_variant() -> None:
    assert set(MODELS) == {
        "dyn-perceiver-nano",
        "dyn-perceiver-regnety-800mf",
        "dyn-perceiver-resnet50-x0375",
        "dyn-perceiver-mobilenetv3-x075",
    }
    assert all(model_id == f"{spec.family}-{spec.variant}" == spec.id for model_id, spec in MODELS.items())


def test_the_registry_cannot_be_written_to() -> None:
    with pytest.raises(TypeError):
        MODELS["x"] = get_spec("dyn-perceiver-nano")  # type: ignore[index]


def test_labels_have_to_match_the_classes() -> None:
    with pytest.raises(ValueError, match="2 labels for 10 classes"):
        dataclasses.replace(get_spec("dyn-perceiver-nano"), labels=("0", "1"))


def test_class_without_a_name_is_called_by_its_number() -> None:
    assert get_spec("dyn-perceiver-nano").label(7) == "7"
    assert get_spec("dyn-perceiver-regnety-800mf").label(7) == "class-7"
