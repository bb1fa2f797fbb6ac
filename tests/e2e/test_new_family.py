"""A family that `vireo families new` wrote, in a distribution of its own: built, installed beside Vireo, and served."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.surfaces import SURFACES, Door, opened
from tests.support.clients import Ask
from tests.support.media_files import encode
from tests.support.system import cli_environment, run_cli, running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MODEL = "night-owl-nano"
CLASSES = 10


def _run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the family is installed: a folder for ``PYTHONPATH``. Nothing is fetched for it."""
    base = tmp_path_factory.mktemp("new-family")
    written = run_cli(
        "families", "new", "night-owl", "--out", str(base / "source"), environment=cli_environment(base, "")
    )
    assert written.returncode == 0, written.stderr
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", "./source", folder=base)
    (wheel,) = (base / "wheels").glob("night_owl-*.whl")
    _run(*pip, "install", "-q", "--no-deps", "--no-index", "--target", "site", str(wheel), folder=base)
    return base / "site"


@pytest.fixture(scope="module")
def door(site: Path) -> Iterator[Door]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        models = ({"id": MODEL, "options": {"random_weights": True}},)
        with running_system(models=models) as system, opened(system) as door:
            yield door


def test_command_line_lists_it_beside_ours(site: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        listed = run_cli("families", "--json", environment=cli_environment(site, ""))
    families = {family["name"]: family for family in json.loads(listed.stdout)}
    assert {"night-owl", "timm"} <= set(families)
    assert [setting["name"] for setting in families["night-owl"]["settings"]] == ["depth"]


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_every_surface_answers_for_it(name: str, door: Door) -> None:
    picture = encode(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    answer = SURFACES[name](door, Ask([picture], model=MODEL, top_k=CLASSES))
    assert answer.error is None, answer
    (item,) = answer.items
    assert {label for label, _ in item.top_k} == {f"class-{index}" for index in range(CLASSES)}
    assert sum(score for _, score in item.top_k) == pytest.approx(1.0, abs=1e-5)


def test_all_surfaces_give_the_same_probabilities(door: Door) -> None:
    picture = encode(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    ask = Ask([picture], model=MODEL, top_k=CLASSES)
    (first,) = SURFACES["http_json"](door, ask).items
    for name, surface in SURFACES.items():
        (item,) = surface(door, ask).items
        assert [score for _, score in item.top_k] == pytest.approx([score for _, score in first.top_k], rel=1e-7), name
