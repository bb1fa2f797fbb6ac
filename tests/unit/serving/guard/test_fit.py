"""A calibration is fitted to benign answers that are made up here, and judged on others of the same kind."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from schedulers.guard.calibration import MIN_NUM_OF_CAP, GuardCalibration
from schedulers.guard.conformal import LEVEL
from schedulers.guard.stream import StreamMonitor
from schedulers.guard.text import OTHERS, POOLED, Asked
from schedulers.policies.guard import combined
from serving.guard.fit import Benign, end_median, fit, text_model


def benign(rng: np.random.Generator, count: int) -> list[Benign]:
    """Two kinds of question, the second answered ten times as long; lengths spread as lengths do."""
    found = []
    for _ in range(count):
        is_long = bool(rng.random() < 0.4)
        asked = Asked("List everything in the picture." if is_long else "Read the word.", num_images=1)
        length = int(np.clip(rng.lognormal(math.log(60 if is_long else 6), 0.4), 1, 500))
        ids = rng.integers(10, 400, length).tolist()
        ends = np.append(rng.normal(-9.0, 1.0, length), -0.1)
        found.append(Benign(asked=asked, token_ids=ids, log_p_ends=ends.tolist(), squeeze=float(rng.random())))
    return found


def calibrated(seed: int = 1) -> GuardCalibration:
    answers = benign(np.random.default_rng(seed), 4000)
    return fit(answers, model="m", checkpoint_sha256="0" * 64, special_ids=[3])


def test_text_model_tells_short_questions_from_long_ones() -> None:
    pairs = [(one.asked, one.log_tokens) for one in benign(np.random.default_rng(0), 500)]
    model = text_model(pairs)
    assert math.expm1(model.log_tokens(Asked("Read the word.", num_images=1))) == pytest.approx(6, rel=0.2)
    assert math.expm1(model.log_tokens(Asked("List everything in the picture.", num_images=1))) == pytest.approx(
        60, rel=0.2
    )


def test_text_model_of_one_question_predicts_its_mean() -> None:
    asked = Asked("Read the word.")
    model = text_model([(asked, 1.0), (asked, 3.0), (asked, 2.0)])
    assert model.log_tokens(asked) == pytest.approx(2.0, abs=1e-3)


def test_new_benign_answers_exceed_their_bound_as_often_as_promised() -> None:
    calibration = calibrated()
    fresh = benign(np.random.default_rng(2), 4000)
    exceeded = [len(one.token_ids) > calibration.expected(one.asked, 512).bound_tokens for one in fresh]
    assert 0.004 <= np.mean(exceeded) <= 0.018  # 1%, with what 3,200 residuals and 4,000 answers leave open


def of_three_kinds(rng: np.random.Generator, count: int) -> list[Benign]:
    """Many alike, and two kinds with longer tails, each in a band of its own and too few to be compared with."""
    found = []
    for _ in range(count):
        kind = int(rng.choice(3, p=(0.74, 0.13, 0.13)))
        asked = Asked(("Read the word.", "List it all.", "Tell everything there is about it.")[kind], num_images=1)
        length = rng.lognormal(math.log((6, 40, 120)[kind]), (0.2, 0.8, 0.8)[kind])
        found.append(Benign(asked=asked, token_ids=range(int(np.clip(length, 1, 4000)))))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_small_groups_exceed_their_bound_as_seldom_as_the_large_one(seed: int) -> None:
    """Compared with all, of which most are of the large group, they did so at several times the level."""
    rng = np.random.default_rng(seed)
    calibration = fit(of_three_kinds(rng, 4000), model="m", checkpoint_sha256="0" * 64)
    exceeded: dict[bool, list[bool]] = {True: [], False: []}
    fresh = of_three_kinds(rng, 12_000)
    expectations = {asked: calibration.expected(asked, 4096) for asked in {one.asked for one in fresh}}
    for one in fresh:
        expected = expectations[one.asked]
        exceeded[expected.group == "free-16"].append(len(one.token_ids) > expected.bound_tokens)
    for is_large, values in exceeded.items():
        compared = calibration.groups["free-16" if is_large else OTHERS].num
        noise = math.sqrt(LEVEL * (1 - LEVEL) * (1 / len(values) + 1 / compared))
        assert np.mean(values) <= LEVEL + 3 * noise, is_large
    assert calibration.groups[OTHERS].num + calibration.groups["free-16"].num == calibration.groups[POOLED].num


def test_too_few_for_two_comparisons_are_compared_together_and_hold_together() -> None:
    rng = np.random.default_rng(7)
    calibration = fit(of_three_kinds(rng, 1600), model="m", checkpoint_sha256="0" * 64)
    assert OTHERS not in calibration.groups
    assert {calibration.group(name).num for name in ("free-16", "free-64", "free-256")} == {1280}
    exceeded = [
        len(one.token_ids) > calibration.expected(one.asked, 4096).bound_tokens for one in of_three_kinds(rng, 8000)
    ]
    assert np.mean(exceeded) <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) * (1 / 8000 + 1 / 1280))


def test_new_benign_answers_are_rarely_suspects() -> None:
    calibration = calibrated()
    suspects = 0
    fresh = benign(np.random.default_rng(3), 1000)
    for one in fresh:
        expected = calibration.expected(one.asked, 512)
        monitor = StreamMonitor(calibration.group(expected.group), expected.bound_tokens, calibration.special_ids)
        monitor.push(one.token_ids, one.log_p_ends)
        suspects += combined(monitor.p_values()) <= 0.01
    assert suspects <= 0.02 * len(fresh)


def test_an_answer_without_end_is_a_suspect() -> None:
    calibration = calibrated()
    asked = Asked("Read the word.", num_images=1)
    expected = calibration.expected(asked, 512)
    monitor = StreamMonitor(calibration.group(expected.group), expected.bound_tokens, calibration.special_ids)
    monitor.push([11, 12, 13] * 100, [-30.0] * 300)
    assert combined(monitor.p_values()) <= 0.01


def test_groups_are_those_with_enough_answers() -> None:
    answers = benign(np.random.default_rng(4), 1600)
    calibration = fit(answers, model="m", checkpoint_sha256="0" * 64)
    assert {POOLED} < set(calibration.groups)
    assert all(group.num >= MIN_NUM_OF_CAP for group in calibration.groups.values())
    assert calibration.groups[POOLED].num == 1280


def test_statistics_are_of_answers_that_nothing_was_fitted_to() -> None:
    calibration = calibrated()
    assert calibration.num_benign == 4000
    assert calibration.groups[POOLED].num == 3200
    assert all(len(group.squeeze) == 3200 for group in calibration.groups.values())


def test_cut_off_answers_count_and_have_no_residual() -> None:
    answers = benign(np.random.default_rng(5), 1000)
    answers = [Benign(asked=one.asked, token_ids=one.token_ids, is_ended=False) for one in answers]
    group = fit(answers, model="m", checkpoint_sha256="0" * 64).groups[POOLED]
    assert group.censored == 1.0
    assert not group.eos


def test_a_calibration_survives_its_file() -> None:
    calibration = calibrated()
    assert GuardCalibration.from_plain(json.loads(json.dumps(calibration.to_plain()))) == calibration


def test_too_few_answers_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(ValueError, match=r"100 answers leave 80 to compare with; record at least 750"):
        fit(benign(np.random.default_rng(6), 100), model="m", checkpoint_sha256="0" * 64)


def test_medians_end_where_few_answers_go() -> None:
    curves = [[-1.0, -2.0]] * 10 + [[-3.0, -4.0, -5.0]] * 9
    assert end_median(curves) == (-1.0, -2.0)
