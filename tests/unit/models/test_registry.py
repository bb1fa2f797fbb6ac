"""The registry and everything that gateways and decode workers import must be light."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from models.registry import find


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
