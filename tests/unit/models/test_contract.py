"""The contract of a family: what its parts refuse, and that they say why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.contract import Family, Knob, LazyRef, Source, Variant, Work, point_key

STEPS = Knob(name="steps", default=4, low=1, high=8, grid=(1, 4, 8), is_integer=True, summary="Steps.", trades="detail")
SHIFT = Knob(name="shift", default=0.5, low=0.0, high=1.0, summary="Shift.")
MODE = Knob(name="mode", default="dense", values=("tile", "dense"), summary="Attention.", trades="quality")
COUNT = Knob(name="count", default="1", parse=LazyRef("builtins:int"), grid=("1", "2"), summary="Texts of a form.")
FLAG = Knob(name="flag", default=False, values=(False, True), summary="A flag.", scope="deployment")


def family(**changed: Any) -> Family:
    fields: dict[str, Any] = {
        "name": "toy",
        "summary": "A toy.",
        "tasks": ("classify",),
        "shape": "unary",
        "variants": (Variant(id="toy-1", summary="One.", io=None),),
        "knobs": (STEPS, MODE, FLAG),
    }
    return Family(**(fields | changed))


@pytest.mark.parametrize("target", ["", "module", "module:", ":name", "module:a b"])
def test_reference_that_names_nothing_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:attribute"):
        LazyRef(target)


def test_reference_loads_what_it_names() -> None:
    assert LazyRef("pathlib:Path").load() is Path


@pytest.mark.parametrize(
    ("knob", "value", "passed"),
    [(STEPS, 8, 8), (STEPS, 2.0, 2), (SHIFT, 1, 1.0), (MODE, "tile", "tile"), (COUNT, "7", "7")],
)
def test_knob_passes_its_values(knob: Knob, value: object, passed: object) -> None:
    got = knob.check(value)
    assert got == passed
    assert type(got) is type(passed)


@pytest.mark.parametrize(
    ("knob", "value", "message"),
    [
        (STEPS, 9, "from 1 to 8"),
        (STEPS, 2.5, "whole number"),
        (STEPS, True, "from 1 to 8"),
        (STEPS, "4", "from 1 to 8"),
        (SHIFT, float("nan"), "from 0 to 1"),
        (SHIFT, None, "from 0 to 1"),
        (MODE, "sparse", "'tile', 'dense'"),
        (MODE, "x" * 5000, "choose one of"),
        (FLAG, 0, "False, True"),
        (FLAG, [], "False, True"),
        (COUNT, "seven", "invalid literal"),
        (COUNT, 7, "give a text such as '1'"),
    ],
)
def test_knob_refuses_other_values_and_names_those_it_takes(knob: Knob, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        knob.check(value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "make",
    [
        lambda: Knob(name="a", default=1, summary=""),
        lambda: Knob(name="a", default=1, summary="", values=(1, 2), low=0, high=2),
        lambda: Knob(name="a", default=1, summary="", low=0),
        lambda: Knob(name="a", default=3, summary="", values=(1, 2)),
        lambda: Knob(name="a", default=1, summary="", low=0, high=2, grid=(3,)),
        lambda: Knob(name="a", default="x", summary="", values=("x",), parse=LazyRef("builtins:int")),
        lambda: Knob(name="not a name", default=1, summary="", values=(1,)),
        lambda: Work({"smiles": 1.0}, 0),
        lambda: Work({"macs": float("nan")}, 0),
        lambda: Work({"macs": -1.0}, 0),
        lambda: Work({}, -1),
        lambda: family(knobs=(MODE, MODE)),
        lambda: family(variants=(Variant(id="a", summary="", io=None),) * 2),
        lambda: family(tasks=()),
        lambda: family(variants=()),
    ],
)
def test_description_that_cannot_be_is_refused_at_once(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_axes_trade_something_and_belong_to_a_request() -> None:
    assert [knob.is_axis for knob in (STEPS, SHIFT, MODE, FLAG)] == [True, False, True, False]
    assert STEPS.points == (1, 4, 8)
    assert MODE.points == ("tile", "dense")
    assert SHIFT.points == (0.5,)


def test_schema_of_a_knob_says_what_it_takes() -> None:
    schema = STEPS.json_schema()
    assert (schema["type"], schema["minimum"], schema["maximum"], schema["default"]) == ("integer", 1, 8, 4)
    assert "detail" in schema["description"]
    assert MODE.json_schema()["enum"] == ["tile", "dense"]
    assert COUNT.json_schema()["examples"] == ["1", "2"]


def test_point_is_completed_with_defaults_and_spelt_in_one_way() -> None:
    point = family().check_point({"steps": 8})
    assert point == {"steps": 8, "mode": "dense"}
    assert point_key(point) == point_key(dict(reversed(point.items()))) == "mode=dense,steps=8"
    assert point_key({"x": 0.1 + 0.2, "flag": True}) == "flag=true,x=0.3"


@pytest.mark.parametrize(
    ("settings", "message"), [({"speed": 1}, "settings are: steps, mode, flag"), ({"flag": True}, "whole deployment")]
)
def test_point_refuses_what_the_family_has_not(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family().check_point(settings)


@pytest.mark.parametrize(
    ("licence", "is_open"), [("Apache-2.0", True), ("MIT", True), ("none", False), ("CC-BY-NC-4.0", False)]
)
def test_licence_says_whether_weights_load_unasked(licence: str, is_open: bool) -> None:
    assert Source(licence=licence).is_open is is_open
