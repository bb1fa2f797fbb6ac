"""``bench-guard``: what is replayed is what was recorded, guarded as it would be served, and counted once."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadtest.adversarial.runs import Record
from models.families.texthawk2.coordinates import format_box
from schedulers.guard.calibration import Expected, Group, GuardCalibration
from schedulers.guard.conformal import NO_BOUND
from schedulers.guard.text import Asked, TextModel
from schedulers.policies.guard import Action, Verdict
from tests.benchmarks import bench_guard
from tests.benchmarks.guard import aims, corpus, costs, rates, shown
from tests.benchmarks.guard.corpus import HARD_FROM, MODELS, Part, hard_places, items, photo
from tests.benchmarks.guard.costs import joules_of
from tests.benchmarks.guard.evidence import Evidence, Subject, evidence_file
from tests.benchmarks.guard.figures import measured
from tests.benchmarks.guard.judged import UNBOUNDED, Judged, limit_at
from tests.benchmarks.guard.rates import bucket
from tests.benchmarks.guard.replay import Answered, Outcome, replayed
from tests.support.synth_fonts import DEJAVU

CAP = 20
CALIBRATION = GuardCalibration(
    model="m",
    checkpoint_sha256="",
    num_benign=1000,
    text=TextModel(weights=(0.0,) * 16, intercept=math.log1p(10)),
    groups={
        "all": Group(
            num=1000,
            p95_tokens=CAP,
            residuals=tuple(i / 1000 - 0.5 for i in range(1000)),
            squeeze=tuple(i / 100_000 for i in range(1000)),
        )
    },
)
LONG = Answered(
    asked=Asked("Read the word.", num_images=1),
    token_ids=tuple(range(10, 310)),
    log_p_ends=(-9.0,) * 300,
    is_ended=True,
)


def test_an_ordinary_answer_passes_whole() -> None:
    outcome = replayed(replace(LONG, token_ids=LONG.token_ids[:8], log_p_ends=LONG.log_p_ends[:8]), CALIBRATION)
    assert (outcome.verdict.action, outcome.tokens, outcome.probe_tokens) == (Action.NORMAL, 8, 0)
    assert (outcome.is_glanced, outcome.suspect_at) == (False, None)


def test_a_long_answer_is_ended_once_its_copy_has_ended_and_both_are_counted() -> None:
    outcome = replayed(replace(LONG, purified=(6, True)), CALIBRATION)
    assert outcome.verdict.action is Action.CAPPED
    assert outcome.suspect_at is not None
    assert (
        outcome.tokens == outcome.suspect_at + 6 + 1
    )  # the copy is told about after its tokens, and heeded at the next
    assert outcome.probe_tokens == 6
    assert outcome.combined <= 0.01


def test_a_long_answer_whose_copy_is_long_too_runs_on() -> None:
    outcome = replayed(replace(LONG, purified=(CAP, False)), CALIBRATION)
    assert (outcome.verdict.action, outcome.tokens, outcome.probe_tokens) == (Action.DEPRIORITISED, 300, CAP)


def test_a_copy_that_nobody_asked_about_ends_nothing() -> None:
    outcome = replayed(LONG, CALIBRATION)
    assert (outcome.verdict.action, outcome.tokens) == (Action.DEPRIORITISED, 300)


def test_an_embedding_that_moves_makes_it_shorter() -> None:
    seen = replace(LONG, p_screen=0.009, squeeze=0.9, purified=(6, True))
    outcome = replayed(seen, CALIBRATION)
    assert (outcome.is_glanced, outcome.suspect_at) == (True, 1)
    assert outcome.tokens < CAP
    assert outcome.p_values["squeeze"] == pytest.approx(1 / 1001)


def test_a_layer_that_is_switched_off_says_nothing() -> None:
    seen = replace(LONG, p_screen=0.009, squeeze=0.9, purified=(6, True))
    outcome = replayed(seen, CALIBRATION, layers=("length", "confirm"))
    assert set(outcome.p_values) == {"length"}
    assert not outcome.is_glanced


@pytest.mark.parametrize(
    ("times", "name"), [(1.0, "1 to 1.5"), (1.5, "1.5 to 2"), (5.9, "4 to 6"), (6.0, "6 to 10"), (50.0, "10 and more")]
)
def test_buckets_have_their_lower_edge(times: float, name: str) -> None:
    assert bucket(times) == name


@pytest.fixture
def matplotlibs_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the corpus are fetched by ``scripts/fonts.sh`` alone."""
    monkeypatch.setattr(corpus, "default_fonts", lambda: DEJAVU)


@pytest.mark.usefixtures("matplotlibs_fonts")
@pytest.mark.parametrize("model", MODELS)
def test_an_item_is_the_same_whenever_it_is_drawn(model: str) -> None:
    (alone,) = items(model, "evaluation", [3])
    among = list(items(model, "evaluation", range(5)))
    assert (alone.files, alone.question) == (among[3].files, among[3].question)
    (other,) = items(model, "calibration", [3])
    assert other.files != alone.files


@pytest.mark.usefixtures("matplotlibs_fonts")
def test_hard_places_have_hard_items_and_leave_none_out() -> None:
    places = hard_places(MODELS[0], "evaluation", 2)
    assert HARD_FROM <= places[0] < places[1]
    assert all(item.is_hard for item in items(MODELS[0], "evaluation", places))
    between = [place for place in range(HARD_FROM, places[1]) if place not in places]
    assert not any(item.is_hard for item in items(MODELS[0], "evaluation", between))


def test_each_part_has_a_photograph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shades: dict[str, int] = {}
    monkeypatch.setattr(
        corpus, "_photograph", lambda name: Image.new("L", (300, 200), shades.setdefault(name, 50 * len(shades)))
    )
    parts: tuple[Part, ...] = ("calibration", "evaluation")
    seen = [{photo(np.random.default_rng(place), part, 8).getpixel((4, 4)) for place in range(20)} for part in parts]
    assert [len(of_part) for of_part in seen] == [1, 1]
    assert seen[0] != seen[1]


# -- the arithmetic of what is published, counted by hand ------------------------------------------------------------

PLAIN: dict[str, Any] = {"int": 1, "str": "x", "float": 1.0, "bool": False}


def record(attack: str = "delayed-eos", **changes: Any) -> Record:
    made = {one.name: PLAIN.get(str(one.type), ()) for one in fields(Record)}
    return Record(**{**made, "attack": attack, "is_at_cap": True, "is_clean_at_cap": True, **changes})


def judged(length: int = 10, *, kept: int | None = None, attack: Record | None = None, **of: Any) -> Judged:
    """An answer of ``length`` tokens of which ``kept`` are left. ``of``: whatever else matters."""
    expected = Expected("free-16", math.log1p(10), of.get("bound", 20), of.get("cap", 20))
    verdict = Verdict(of.get("action", Action.NORMAL))
    return Judged(
        subject=Subject(
            key="k",
            kind=attack.attack if attack else of.get("kind", "word"),
            is_hard=of.get("is_hard", False),
            is_extra=of.get("is_extra", False),
            answered=Answered(
                asked=Asked("Read.", num_images=1), token_ids=(*range(length),), log_p_ends=(), is_ended=True
            ),
            prompt_ids=(),
            expected=of.get("expected"),
            pictures=lambda: [],
            record=attack,
        ),
        evidence=Evidence(squeeze=of.get("squeeze")),
        outcome=Outcome(
            verdict=verdict,
            tokens=length if kept is None else kept,
            probe_tokens=of.get("probe", 0),
            is_glanced=of.get("is_glanced", False),
            suspect_at=None,
            p_values=of.get("p", {}),
            expected=expected,
        ),
        p_squeeze=of.get("p_squeeze"),
    )


def attacked(name: str, length: int = 120, clean: int = 10, **of: Any) -> Judged:
    known = {key: of.pop(key) for key in [*of] if key in {one.name for one in fields(Record)}}
    return judged(length, attack=record(name, clean_tokens=clean, tokens=length, **known), **of)


def spelled(tokens: Sequence[int]) -> str:
    return "abcdefghijklmnopqrst"[: len(tokens)]


def test_over_the_bound_are_those_that_have_one_and_exceed_it() -> None:
    benign = [judged(20), judged(21), judged(5), judged(900, bound=NO_BOUND)]
    rows = {row["group"]: row for row in rates.coverage(benign)}
    assert rows["all"]["num"] == 4
    assert rows["all"]["bounded"] == 3
    assert rows["all"]["exceeded"]["value"] == pytest.approx(1 / 3)
    assert [row["exceeded"] for row in rates.coverage(benign[3:])] == [None, None]


def test_false_alarms_are_counted_by_detector_and_a_silent_one_has_no_share() -> None:
    mixed = [judged(p={"eos": 0.01}), judged(p={"eos": 0.011}, is_hard=True), judged(), judged(p={"eos": 0.001})]
    extra = judged(p={"eos": 0.01}, is_hard=True, is_extra=True)
    rows = {row["detector"]: row for row in rates.false_alarms(mixed, [mixed[1], extra])}
    assert rows["eos"]["0.01"]["value"] == 0.5
    assert rows["eos"]["0.001"]["value"] == 0.25
    assert rows["eos"]["hard_0.01"]["value"] == 0.5
    assert rows["combined"]["0.01"]["value"] == 0.5
    assert (rows["length"]["0.01"], rows["length"]["hard_0.01"]) == (None, None)
    assert rows["confirmed"]["0.01"]["value"] == 0.0


def test_the_squeeze_is_judged_on_those_before_the_first_that_was_not_squeezed() -> None:
    mixed = [judged(squeeze=0.9, p_squeeze=0.01), judged(squeeze=0.1, p_squeeze=0.5), judged()]
    mixed.append(judged(squeeze=0.9, p_squeeze=0.01))
    row = next(row for row in rates.false_alarms(mixed, []) if row["detector"] == "squeeze")
    assert (row["num"], row["0.01"]["value"]) == (2, 0.5)


def test_a_limit_leaves_no_more_below_it_than_it_says() -> None:
    values = [place / 300 for place in range(1, 301)]
    limit = limit_at(values, 0.01)
    assert (sum(value < limit for value in values), limit) == (3, 4 / 300)
    assert limit_at([0.5] * 7, 0.2) == 0.5  # of equals it takes all or none
    assert limit_at([0.2, 0.3], 0.01) == 0.2


def test_static_and_adaptive_attacks_are_counted_apart_and_controls_in_neither() -> None:
    crafted = [
        attacked("delayed-eos", p={"eos": 0.002}, action=Action.CAPPED),
        attacked("verbose-released", 20, p={"eos": 0.5}),
        attacked("universal-patch", p={"eos": 0.002}),
        attacked("universal-patch", 10, is_held_out=True, p={"eos": 0.5}),
        attacked("delayed-eos-purified", 50, p={"eos": 0.2}),
        attacked(UNBOUNDED, 512, p={"eos": 0.002}),
        attacked("noise", 10),
    ]
    rows = {(row["attack"], row["bucket"]): row for row in rates.found(crafted, {0.01: 0.6, 0.001: 0.001})}
    assert rows["all static", "6 and more"]["num"] == 1
    assert rows["all static", "1 to 1.5"]["num"] == 1  # the patch's own picture is not among them
    assert rows["all static", "2 to 4"]["eos_0.01"]["value"] == 0.0
    assert rows["all static", "6 and more"]["confirmed_0.01"]["value"] == 1.0
    assert rows["all adaptive", "4 to 6"]["num"] == 1
    assert rows["all adaptive", "4 to 6"]["realised_0.01"]["value"] == 1.0
    assert rows["all adaptive", "4 to 6"]["realised_0.001"]["value"] == 0.0
    assert rows["universal-patch", "any"]["num"] == 1
    assert rows["delayed-eos", "any"]["length_0.01"] is None
    assert sum(row["num"] for key, row in rows.items() if key[0].startswith("all") and "and more" not in key[1]) == 3
    assert list(dict.fromkeys(attack for attack, _ in rows))[-2:] == [UNBOUNDED, "noise"]


def test_a_curve_has_both_shares_at_every_threshold() -> None:
    benign = [judged(p={"eos": 0.5}), judged(p={"eos": 0.1})]
    crafted = [attacked("delayed-eos", p={"eos": 0.1}), attacked("delayed-eos", p={"eos": 0.01}), attacked(UNBOUNDED)]
    curves = rates.roc(benign, crafted)
    assert curves["eos"] == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]
    assert set(curves) == {"eos", "combined"}


@pytest.mark.parametrize(
    ("kind", "expected", "told", "is_right"),
    [
        ("word", "abc", "abc", True),
        ("word", "abc", "abcd", False),
        ("ground_shape", format_box(0, 0, 1, 1), format_box(0, 0, 1, 0.6), True),
        ("ground_shape", format_box(0, 0, 1, 1), format_box(0, 0, 1, 0.4), False),
        ("caption", format_box(0, 0, 1, 1), format_box(0, 0, 1, 0.6), False),
    ],
)
def test_right_is_equal_or_a_box_that_overlaps_by_half(kind: str, expected: str, told: str, is_right: bool) -> None:
    assert rates.is_right(judged(kind=kind, expected=expected), 10, lambda _: told) is is_right


def test_what_benign_answers_lose_is_what_was_right_and_no_longer_is() -> None:
    mixed = [
        judged(4, expected="abcd"),
        judged(4, kept=2, expected="abcd", action=Action.CAPPED, probe=2),
        judged(4, kept=2, expected="wrong", action=Action.CAPPED),
        judged(4, is_hard=True),
    ]
    lost = rates.spoilt(mixed, spelled)
    assert lost is not None
    assert lost["value"] == pytest.approx(1 / 3)
    assert rates.spoilt(mixed[3:], spelled) is None
    row = {row["which"]: row for row in rates.benign_rows(mixed, mixed[3:], spelled)}["mixture"]
    assert (row["num"], row["truncated"]["value"], row["capped"]["value"]) == (4, 0.5, 0.5)
    assert (row["score_before"], row["score_after"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert row["probe_share"] == 2 / 16


def timed(*pairs: tuple[int, float]) -> list[Record]:
    return [record(clean_tokens=tokens, tokens=tokens, clean_j=joules, victim_j=joules) for tokens, joules in pairs]


def test_joules_are_a_request_and_its_tokens() -> None:
    assert joules_of(timed((10, 3.0), (100, 12.0), (400, 42.0))) == pytest.approx((2.0, 0.1))


def test_joules_are_fitted_so_that_relative_errors_are_least() -> None:
    pairs = ((1, 2.0), (3, 3.0), (100, 300.0))
    fixed, each = joules_of(timed(*pairs))

    def errors(fixed: float, each: float) -> float:
        return sum(((fixed + each * tokens) / joules - 1.0) ** 2 for tokens, joules in pairs)

    for change in (-0.01, 0.01):
        assert errors(fixed, each) < errors(fixed + change, each)
        assert errors(fixed, each) < errors(fixed, each + change)


def test_an_attack_costs_its_tokens_its_second_look_and_the_look_at_its_embedding() -> None:
    one = attacked("delayed-eos", 100, 10, kept=30, probe=10, is_glanced=True, attacker_j=7.0, action=Action.CAPPED)
    row, total = costs.energy([one], (2.0, 0.1))
    assert (row["attack"], total["attack"]) == ("delayed-eos", "all static")
    assert (row["length"]["value"], row["guarded_length"]["value"]) == (10.0, 4.0)
    assert row["most_length"]["value"] == (512 + 20) / 10
    assert row["energy"]["value"] == pytest.approx(12.0 / 3.0)
    assert row["guarded_energy"]["value"] == pytest.approx((3 * 2.0 + 4.0) / 3.0)
    assert row["saved_j"] == pytest.approx(12.0 - 10.0)
    assert (row["cap_over_clean"], row["attacker_j"], row["capped"]["value"]) == (2.0, 7.0, 1.0)
    assert total["guarded_energy"] == row["guarded_energy"]


def test_a_patch_costs_the_attacker_what_its_own_pictures_cost() -> None:
    own = attacked("universal-patch", 500, attacker_j=8.0)
    other = attacked("universal-patch", 20, is_held_out=True, attacker_j=0.0)
    row, _ = costs.energy([own, other], (1.0, 1.0))
    assert (row["num"], row["length"]["value"], row["attacker_j"]) == (1, 2.0, 4.0)


def test_aims_are_of_the_worst_attack_of_each_camp_and_the_bound_has_none() -> None:
    crafted = [
        attacked("delayed-eos", p={"eos": 0.002}, action=Action.CAPPED, kept=12),
        attacked("lingoloop", p={"eos": 0.5}, kept=30),
        attacked("delayed-eos-purified", p={"eos": 0.002}, action=Action.CAPPED, kept=60),
        attacked(UNBOUNDED, 512),
    ]
    mixed = [judged(4, expected="abcd", p={"eos": 0.002}), *[judged(4, expected="abcd")] * 99]
    rows = list(aims.aims(mixed, crafted, list(costs.energy(crafted, (0.0, 1.0))), spelled))
    told = {row["what"]: (row["measured"]["value"], row["aim"], row["is_met"]) for row in rows}
    bound = "times as long with the guard at most (output cap + second look) over clean"
    assert told == {
        "false alarms of all detectors together at 1%": (0.01, 0.01, True),
        "static, six times as long, combined (of 2)": (0.5, 0.95, False),
        "static, six times as long, confirmed (of 2)": (0.5, 0.95, False),
        "static, times the joules with the guard, worst attack: lingoloop (of 1)": (3.0, 1.5, False),
        f"static, {bound}: delayed-eos (of 1); holds whatever detectors say": (53.2, None, None),
        "adaptive, six times as long, combined (of 1)": (1.0, 0.8, True),
        "adaptive, six times as long, confirmed (of 1)": (1.0, 0.8, True),
        "adaptive, times the joules with the guard, worst attack: delayed-eos-purified (of 1)": (6.0, 3.0, False),
        f"adaptive, {bound}: delayed-eos-purified (of 1); holds whatever detectors say": (53.2, None, None),
        "benign answers that are cut off": (0.0, 0.005, True),
        "benign answers that were right and no longer are (-0.5 points)": (0.0, 0.005, True),
    }


def test_attacks_are_checked_before_they_are_believed() -> None:
    crafted = [
        attacked("delayed-eos", 50),
        attacked("nes-lengths", 60),
        attacked("delayed-eos-purified", 100),
        attacked("noise", 12),
        attacked(UNBOUNDED, 512),
        attacked(UNBOUNDED, 100, is_at_cap=False),
    ]
    rows = [(row["measured"], row["limit"], row["holds"]) for row in aims.sanity(crafted)]
    assert rows == [(6.0, 5.0, False), (1.2, aims.CONTROL_MOST, False), (0.5, 1.0, False)]
    assert [row["holds"] for row in aims.sanity([attacked("noise", 10), attacked(UNBOUNDED, 512)])] == [True, True]


def published(num_benign: int = 100) -> dict[str, Any]:
    benign = [judged(4, p={"screen": 0.5}) for _ in range(num_benign - 1)] + [judged(4, p={"screen": 0.002})]
    crafted = [attacked("delayed-eos", p={"screen": 0.002}), attacked("lingoloop", p={"screen": 0.002})]
    return measured([*benign, *crafted], CALIBRATION, decode=spelled)


def stamp(commit: str) -> dict[str, Any]:
    hardware = {"cores": 2, "cpu": "a processor", "load_average_before": 0.5}
    return {"date": "2026-11-30", "commit": commit, "command": "c", "hardware": hardware}


def test_tables_say_what_is_silent_what_was_realised_and_what_the_screen_was_trained_on() -> None:
    (title, header, cells), *more = [
        one for one in shown.tables({"offline": {"m": {**published(), "of": stamp("a")}}}) if "share found" in one[0]
    ]
    assert not more
    assert "from 5000 benign answers on" in title
    rows = {str(row[0]): dict(zip(header, row, strict=True)) for row in cells if row[1] == "any"}
    assert rows["delayed-eos"]["length"] is None
    assert str(rows["delayed-eos"]["screen (1.0%)"]).startswith("100.0%")
    assert str(rows["delayed-eos"]["screen (1.0%)"]).endswith("*")
    assert str(rows["lingoloop"]["screen (1.0%)"]).endswith(")")
    assert str(rows["lingoloop"]["combined, at most 1% of benign"]).startswith("100.0%")


def test_a_rate_of_one_in_a_thousand_is_claimed_from_enough_answers_on() -> None:
    of = {"of": stamp("a")}
    titles = [one[0] for one in shown.tables({"offline": {"m": {**published(shown.MIN_FOR_RARE), **of}}})]
    assert any("p <= 0.1%" in title for title in titles)
    assert not any("benign answers on" in title for title in titles)


def test_each_model_says_what_it_was_measured_by_also_where_another_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_guard, "_model", lambda args, model: {"num": 1})
    monkeypatch.setattr(bench_guard, "provenance", lambda name: stamp("new"))
    before = {MODELS[1]: {"num": 0, "of": stamp("old")}, "of": stamp("older")}
    after = bench_guard.offline(Namespace(model=[MODELS[0]]), before)
    assert {model: (part["num"], part["of"]["commit"]) for model, part in after.items()} == {
        MODELS[0]: (1, "new"),
        MODELS[1]: (0, "old"),
    }
    assert set(bench_guard.offline(Namespace(model=[MODELS[0]]), {MODELS[1]: {"num": 0}})) == {MODELS[0]}


def test_measured_by_has_a_row_for_each_model_and_part() -> None:
    part = {"title": "t", "header": ["h"], "cells": [["c"]], "of": stamp("served")}
    offline = {model: {**published(), "of": stamp(model)} for model in ("a", "b")}
    title, _, cells = list(shown.tables({"offline": offline, "overhead": part}))[-1]
    assert title == "**Measured by**"
    assert [(row[0], row[2]) for row in cells] == [("a", "a"), ("b", "b"), ("overhead", "served")]


def test_evidence_is_of_these_weights_and_this_head_alone(tmp_path: Path) -> None:
    head = tmp_path / "head.json"
    head.write_text("one")
    names = [evidence_file("w", head), evidence_file("v", head)]
    head.write_text("two")
    names.append(evidence_file("w", head))
    assert len(set(names)) == 3
    head.write_text("one")
    assert evidence_file("w", head) == names[0]
