"""The content of ``guard.json``: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from schedulers.guard.calibration import FORMAT, MIN_NUM, MIN_NUM_OF_CAP, Group, GuardCalibration, apart
from schedulers.guard.conformal import NO_BOUND
from schedulers.guard.text import Asked, TextModel


def calibration(**groups: Group) -> GuardCalibration:
    return GuardCalibration(
        model="reader",
        checkpoint_sha256="0" * 64,
        num_benign=300,
        text=TextModel(weights=(0.0,) * 16, intercept=3.0),
        groups={"all": group(num=800), **groups},
        special_ids=frozenset({7, 8}),
    )


def group(num: int = 700, p95_tokens: int = 40, **fields: Any) -> Group:
    return Group(num=num, p95_tokens=p95_tokens, residuals=tuple(i / num for i in range(num)), **fields)


def test_what_is_written_is_what_is_read() -> None:
    whole = calibration(
        **{"free-64": group(repeat=(0.5, 0.75), special_run=(1, 2), eos=(0.0, 3.0), eos_median=(-9.0,), squeeze=(0.1,))}
    )
    assert GuardCalibration.from_plain(json.loads(json.dumps(whole.to_plain()))) == whole


def test_groups_without_statistics_are_compared_with_all_such_and_not_with_the_large_ones() -> None:
    found = calibration(**{"free-64": group(), "free-16": group(num=MIN_NUM - 1), "others": group(num=650)})
    assert found.group("free-64").num == 700
    assert found.group("free-16").num == found.group("never heard of").num == 650


def test_where_nothing_is_apart_everybody_is_compared_with_all() -> None:
    found = calibration(**{"free-64": group()})
    assert {found.group(name).num for name in ("free-64", "free-16")} == {800}


@pytest.mark.parametrize(
    ("sizes", "own"),
    [
        ({"a": 2000, "b": 700, "c": 300, "d": 299}, {"a", "b"}),
        ({"a": 2000, "b": 700, "c": 300, "d": 298}, {"a"}),
        ({"a": 2000, "b": 598}, set()),
        ({"a": 2000, "b": 599}, {"a"}),
        ({"a": 598, "b": 598, "c": 598}, set()),
        ({"a": 5000}, set()),
        ({}, set()),
    ],
)
def test_a_group_is_apart_if_it_is_large_and_the_rest_is_as_well(sizes: dict[str, int], own: set[str]) -> None:
    assert apart(sizes) == own


def test_fewer_answers_say_where_they_end_than_which_of_them_are_rare() -> None:
    for num, cap in ((MIN_NUM_OF_CAP, 12), (MIN_NUM_OF_CAP - 1, 40)):
        found = calibration(**{"free-64": group(num=num, p95_tokens=12)})
        assert found.group("free-64").num == 800
        assert found.expected(Asked("Describe it"), 500).cap_tokens == cap


def test_where_others_say_the_cap_it_is_not_below_what_the_text_lets_expect() -> None:
    whole = calibration()
    long = replace(whole, text=TextModel(weights=(0.0,) * 16, intercept=math.log1p(100.5)))
    assert whole.expected(Asked("Describe it"), 500).cap_tokens == 40
    assert long.expected(Asked("Describe it"), 500).cap_tokens == 101
    assert long.expected(Asked("Describe it"), 64).cap_tokens == 64


def test_text_says_group_bound_and_cap() -> None:
    expected = calibration(**{"free-64": group(), "others": group()}).expected(Asked("Describe it"), max_tokens=500)
    assert expected.group == "free-64"
    assert expected.log_tokens == 3.0
    assert 19 < expected.bound_tokens < 19 * 3
    assert expected.cap_tokens == 40
    assert calibration().expected(Asked("Describe it"), max_tokens=8).cap_tokens == 8
    level = {"free-64": 0.0}
    free = calibration(**{"free-64": group()}).expected(Asked("Describe it"), 500, level.__getitem__)
    assert free.bound_tokens == NO_BOUND


def test_censored_answers_are_those_without_a_residual() -> None:
    assert Group(num=4, p95_tokens=1, residuals=(0.0, 1.0, 2.0)).censored == 0.25


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"num": 0, "p95_tokens": 1}, "at least 1"),
        ({"num": 1, "p95_tokens": 0}, "at least 1"),
        ({"num": 1, "p95_tokens": 1, "residuals": (0.0, 1.0)}, "one each at most"),
        ({"num": 2, "p95_tokens": 1, "repeat": (1.0, 0.0)}, "not ascending"),
        ({"num": 2, "p95_tokens": 1, "eos": (1.0,)}, "eos_median"),
        ({"num": 2, "p95_tokens": 1, "squeeze": (float("nan"),)}, "not finite"),
    ],
)
def test_groups_that_contradict_themselves_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Group(**fields)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": FORMAT + 1}, "calibrate again"),
        ({"groups": {}}, "no group 'all'"),
        ({"groups": {"all": {"num": 1, "p95_tokens": 1, "colour": []}}}, "unknown fields: colour"),
        ({"groups": {"all": {"num": True, "p95_tokens": 1}}}, "all.num"),
        ({"groups": {"all": {"num": 1, "p95_tokens": 1, "repeat": ["x"]}}}, "all.repeat"),
        ({"special_ids": [1.5]}, "special_ids"),
        ({"text": {"intercept": 0.0}}, "weights is missing"),
        ({"model": 3}, "model is 3"),
    ],
)
def test_what_is_not_a_calibration_is_refused_with_the_place(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        GuardCalibration.from_plain(calibration().to_plain() | change)
    with pytest.raises(ValueError, match="need dict"):
        GuardCalibration.from_plain([])
