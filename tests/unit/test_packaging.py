"""What is installed is what runs: every library that is imported is asked for, every file that is read is shipped."""

from __future__ import annotations

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.source_tree import ROOT, imported, modules, tracked_files

_PACKAGES = {
    "serving": "serving",
    "models": "models",
    "schedulers": "schedulers",
    "loadtest": "loadtest",
    "vireo_pb": "proto/vireo_pb",
}
_OURS = {*_PACKAGES, "tests"}
_PART_OF = {"triton": "torch", "pydantic-core": "pydantic", "starlette": "fastapi"}
"""Imported by name, but one thing with the library that pins it."""
_NOT_SHIPPED = {"README.md", "checkpoints/.gitignore"}
"""For readers of the repository."""


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _asked_for(lists: list[list[str]]) -> dict[str, Requirement]:
    requirements = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def _cpu_in() -> dict[str, Requirement]:
    lines = (ROOT / "requirements" / "cpu.in").read_text(encoding="utf-8").splitlines()
    return _asked_for([[line for line in lines if line and not line.startswith("#")]])


def _locked(name: str = "cpu.lock") -> dict[str, set[str]]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    versions: dict[str, set[str]] = {}
    for line in lines:
        if line and not line.startswith(("#", " ")):
            package, _, rest = line.partition("==")
            versions.setdefault(canonicalize_name(package), set()).add(rest.partition(";")[0].strip(" \\"))
    return versions


def _imports(package: str) -> set[str]:
    return {name.split(".")[0] for path in modules(package) for name in imported(path)}


@cache
def _installed() -> dict[str, list[str]]:
    return dict(packages_distributions())


def _distributions(package: str) -> dict[str, set[str]]:
    """Imported name -> distributions that bring it, for what is installed and is neither ours nor Python's."""
    known = _installed()
    foreign = _imports(package) - set(sys.stdlib_module_names) - _OURS - {""}
    return {
        name: {_PART_OF.get(d, d) for d in map(canonicalize_name, known[name])} for name in foreign if name in known
    }


@pytest.mark.parametrize("package", ["serving", "models", "loadtest"])
def test_every_library_that_is_imported_is_a_dependency(package: str) -> None:
    project = _project()["project"]
    extras = [texts for name, texts in project["optional-dependencies"].items() if name != "dev"]
    asked = _asked_for([project["dependencies"], *extras])
    brought = _distributions(package)
    assert len(brought) > 3
    assert {name: found for name, found in brought.items() if not found & set(asked)} == {}


@pytest.mark.parametrize("package", ["serving", "models", "loadtest", "tests"])
def test_every_library_that_is_imported_is_asked_for_by_the_lock(package: str) -> None:
    asked = set(_cpu_in()) | {"grpcio-tools"}
    assert {name: found for name, found in _distributions(package).items() if not found & asked} == {}


def test_the_lock_holds_versions_that_the_project_accepts() -> None:
    project = _project()["project"]
    extras = project["optional-dependencies"]
    locked = _locked()
    for requirement in _asked_for([project["dependencies"], extras["cpu"], extras["dev"]]).values():
        if requirement.name == "torch":  # installed first, by name (docs/decisions/0002)
            continue
        versions = locked[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(v, prereleases=True) for v in versions), (str(requirement), versions)


@pytest.mark.parametrize("name", ["cpu.lock", "gpu.lock", "triton.lock"])
def test_every_locked_file_is_known_by_its_hash(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.partition("\n")[2].strip())
    assert len(entries) > (0 if name == "triton.lock" else 100)
    for entry in entries:
        first, *hashes = entry.split(" \\\n")
        assert re.fullmatch(r"[a-z0-9.-]+==[\w.+!]+( ; python_full_version \S+ '3\.12')?", first), first
        assert hashes, f"{first} has no hash: scripts/lock.sh --hashes"
        assert all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first


def test_what_is_installed_has_to_have_a_hash_of_the_lock() -> None:
    installs = [
        line
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith("\t") and "requirements/" in line
    ]
    assert [line.rpartition(" ")[2] for line in installs] == ["requirements/cpu.lock", "requirements/triton.lock"]
    assert all("--no-deps --require-hashes --only-binary :all: -r " in line for line in installs)


def test_the_gpu_lock_is_complete_and_meets_what_the_project_asks_for() -> None:
    project = _project()["project"]
    locked = _locked("gpu.lock")
    asked = _asked_for([project["dependencies"], project["optional-dependencies"]["gpu"]])
    for name, requirement in asked.items():
        (version,) = locked[name]
        assert requirement.specifier.contains(version), (str(requirement), version)
    assert {"torch", "triton", "vllm"} <= set(locked)


def test_everything_that_cpu_in_names_is_locked() -> None:
    assert set(_cpu_in()) - set(_locked()) - {"torch"} == set()


@pytest.mark.parametrize("package", list(_PACKAGES))
def test_every_file_that_lies_beside_the_code_is_shipped(package: str) -> None:
    folder = ROOT / _PACKAGES[package]
    files = {p for p in tracked_files() if p.is_relative_to(folder) and p.suffix != ".py"}
    patterns = _project()["tool"]["setuptools"]["package-data"].get(package, [])
    shipped = {path for pattern in patterns for path in folder.glob(pattern)}
    assert {str(path.relative_to(folder)) for path in files - shipped} - _NOT_SHIPPED == set()


def test_files_that_the_code_opens_beside_itself_are_there() -> None:
    """A data file that is read by name must be tracked: one that only this machine has would not reach anybody."""
    tracked = {path.relative_to(ROOT) for path in tracked_files()}
    if not tracked:
        pytest.skip("not a git clone")
    for package in ("serving", "models", "loadtest"):
        for path in modules(package):
            for name in re.findall(r"Path\(__file__\)\.with_name\(\"([^\"]+)\"\)", path.read_text(encoding="utf-8")):
                assert path.with_name(name).relative_to(ROOT) in tracked, (path, name)
    assert Path("models/training/texthawk2/synth/words.txt") in tracked
