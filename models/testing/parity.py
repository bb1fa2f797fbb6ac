"""Comparison with an oracle: with plain twins and installed libraries, or with the official code in a folder.

Official code is not ours to ship. What it imports for training or for other devices is not needed here, so its packages
are registered without their start-up code (``bare_package``), and what is not installed gets a ``stand_in``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from models.contract import Parity
from models.testing.subject import Subject


def outputs_are_those_of_the_oracle(subject: Subject) -> None:
    """Our outputs equal those of the oracle, within its tolerance, as far as the oracle is installed."""
    compared = 0
    for parity in parities(subject, None):
        compared += 1
        assert parity.largest_difference <= parity.tolerance, (
            f"{parity.case}: off by {parity.largest_difference:.2g}, and {parity.tolerance:.2g} are allowed"
        )
    assert compared, f"the oracle of {subject.family.name} compares nothing"


def parities(subject: Subject, official: Path | None) -> Iterable[Parity]:
    """The comparisons of a family's oracle: with the official code in a folder, or (None) with what is installed."""
    assert subject.family.oracle is not None, f"{subject.family.name} names no oracle"
    pairs: Iterable[Parity] = subject.family.oracle.load()(subject.variant, official)
    with torch.inference_mode():
        yield from pairs


def bare_package(name: str, folder: Path) -> None:
    """Register ``folder`` as a package without running its ``__init__``.

    Raises: FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing")
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    _register(package)


def stand_in(name: str, **members: Any) -> None:
    """Register an empty module that has only these members."""
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(members)
    _register(module)


def _register(module: ModuleType) -> None:
    sys.modules[module.__name__] = module
    parent, _, child = module.__name__.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
