"""Families that make pictures: the skeleton, and a toy that paints out of words, keep the contract."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from models.testing import checks_of
from serving.cli.families_command import write_skeleton
from tests.families.picture_toys import PAINTER


@pytest.mark.parametrize("check", checks_of(PAINTER), ids=str)
def test_painter_keeps_the_contract(check: object) -> None:
    check()  # type: ignore[operator]


@pytest.mark.parametrize("task", ["classify", "images"])
def test_skeleton_keeps_the_contract(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"skeleton_{task}"
    write_skeleton(name.replace("_", "-"), task, tmp_path / "new")
    monkeypatch.syspath_prepend(tmp_path / "new")
    family = importlib.import_module(f"{name}.family").FAMILY
    assert task in family.tasks
    for check in checks_of(family):
        check()
    for module in [each for each in sys.modules if each.split(".")[0] == name]:
        del sys.modules[module]
