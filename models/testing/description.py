"""Checks of a family's description: complete, plain and free of torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from models.card import family_card
from models.contract import LazyRef
from models.io import MAX_TILES
from models.testing.subject import Subject, can


def card_is_complete(subject: Subject) -> None:
    """Everything that users are told is there: summaries, licences, inputs and outputs, what each knob is for."""
    family = subject.family
    assert family.summary, "the family has no summary"
    assert family.name == family.name.lower(), f"{family.name} is not in lower case"
    for knob in family.knobs:
        assert knob.summary.endswith("."), f"knob {knob.name} is not described in a sentence"
    for variant in family.variants:
        assert variant.summary, f"{variant.id} has no summary"
        assert variant.io is not None, f"{variant.id} does not say what goes in and comes out"
        assert variant.source.licence, f"{variant.id} names no licence; write 'none' where nothing is granted"
        assert variant.weights is None or variant.weights.is_dir(), f"{variant.id}: no folder {variant.weights}"
    assert all(family.exempt.values()), "the family does not say why it does not keep some check"
    text = family_card(family)
    missing = [v.id for v in family.variants if v.id not in text] + [k.name for k in family.knobs if k.name not in text]
    assert not missing, f"the card leaves out {', '.join(missing)}"


def everything_named_is_there(subject: Subject) -> None:
    """Every lazy reference can be loaded, and the parts that the shape needs are there."""
    family = subject.family
    for name, value in [*vars(family).items(), *family.parts.items()]:
        if isinstance(value, LazyRef):
            assert value.load() is not None, f"{name} of {family.name} names nothing: {value.target}"
    for name in ("work",) if family.shape == "stream" else ("build", "runner", "work"):
        assert getattr(family, name) is not None, f"a family of shape {family.shape} needs {name}"


def variant_is_plain_data(subject: Subject) -> None:
    """Variants cross processes: they consist of numbers, texts, paths and records of these, and of no code."""
    _check_plain(subject.variant, subject.name)
    assert pickle.loads(pickle.dumps(subject.variant)) == subject.variant, f"{subject.name} changes on the way"


def _check_plain(value: Any, where: str) -> None:
    if is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            _check_plain(getattr(value, each.name), f"{where}.{each.name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(inner, f"{where}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    else:
        is_plain = value is None or isinstance(value, bool | int | float | str | Path)
        assert is_plain, f"{where} is a {type(value).__name__}, which is no plain data"


def torch_is_not_loaded(subject: Subject) -> None:
    """Gateways and decode workers read the card, prepare inputs and count work, and never load torch."""
    family = subject.family
    refs = [ref.target for ref in (family.work, family.allowed, family.prepare) if ref is not None]
    code = (
        "import sys\n"
        "from models.contract import LazyRef\n"
        f"for target in {refs!r}: LazyRef(target).load()\n"
        "sys.exit('torch is loaded' if 'torch' in sys.modules else 0)"
    )
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def cost_rises_along_every_axis(subject: Subject) -> None:
    """From the cheapest to the best value of a knob, no unit of work falls, and at least one rises. For a chat's tiles
    see ``streams``: its work is told in tokens."""
    family = subject.family
    for knob in (knob for knob in family.knobs if knob.is_axis and knob.name != MAX_TILES):
        points = [point for value in knob.points if can(subject, point := family.check_point({knob.name: value}))]
        if len(points) < 2:  # what this variant can do at one value only is no axis of it
            continue
        works = [subject.work(point) for point in points]
        for name in {name for work in works for name in work.units}:
            amounts = [work.units.get(name, 0.0) for work in works]
            assert amounts == sorted(amounts), f"{name} falls along {knob.name}: {amounts}"
        assert works[0].units != works[-1].units, f"{knob.name} trades {knob.trades} for no work at all"
