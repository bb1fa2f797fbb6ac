from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schedulers.cost import CostModel
from schedulers.policies.stage_choice import choose_stage, fit_batch, sample_s
from tests.unit.schedulers.build import linear_cost

RATES = (0.5, 0.5, 1.0)
FAR_S = 1e6


def choose(*views: tuple[int, int, float], max_batch: int = 8, cost: CostModel | None = None) -> int:
    return choose_stage(views, 0.0, cost or linear_cost(), RATES, max_batch)


def test_only_stage_with_samples_is_chosen() -> None:
    assert choose((1, 1, FAR_S)) == 1


def test_fuller_batch_goes_first_when_new_samples_queue() -> None:
    assert choose((0, 8, FAR_S), (2, 3, FAR_S)) == 0


def test_deeper_stage_goes_first_of_two_full_ones() -> None:
    assert choose((0, 20, FAR_S), (1, 8, FAR_S), (2, 9, FAR_S)) == 2


def test_light_load_goes_where_most_answers_per_second_are() -> None:
    assert choose((0, 3, FAR_S), (2, 3, FAR_S)) == 2  # exit 2 answers everyone
    assert choose((0, 3, FAR_S), (2, 1, FAR_S)) == 0  # 1.5 answers in 13 ms beat 1 in 11 ms


def test_survivor_whose_slack_runs_out_goes_first() -> None:
    # Two stages left take 22 ms alone; a full batch of new samples takes 18 ms.
    assert choose((0, 8, FAR_S), (1, 1, 0.045)) == 0
    assert choose((0, 8, FAR_S), (1, 1, 0.035)) == 1


def test_under_a_backlog_a_batch_that_wastes_more_than_it_saves_does_not_go_first() -> None:
    assert choose((0, 9, FAR_S), (1, 1, 0.030)) == 0
    assert choose((0, 9, FAR_S), (1, 5, 0.030)) == 1


def test_of_two_urgent_stages_the_one_with_less_slack_goes_first() -> None:
    assert choose((0, 8, FAR_S), (1, 1, 0.034), (2, 1, 0.028)) == 1
    assert choose((0, 8, FAR_S), (1, 1, 0.034), (2, 1, 0.015)) == 2


def test_sample_s_follows_the_exit_rates() -> None:
    full_s = linear_cost().batch_s(0, 8) / 8
    assert abs(sample_s(linear_cost(), RATES, 8) - full_s * (1 + 0.5 + 0.25)) < 1e-12


def batch_s(num_samples: int) -> float:
    return 0.010 + 0.002 * num_samples


def test_nobody_is_given_up_when_two_batches_meet_every_deadline() -> None:
    assert fit_batch([0.013, 0.5, 0.5, 0.5], 0.0, batch_s, others_wait=False) == (0, 1)


def test_tight_one_is_given_up_when_others_wait_and_it_would_cost_more_answers() -> None:
    assert fit_batch([0.013] + [0.5] * 7, 0.0, batch_s, others_wait=True) == (1, 7)


def test_batch_shrinks_when_that_answers_more_per_second() -> None:
    assert fit_batch([0.024] * 7 + [0.5], 0.0, batch_s, others_wait=True) == (0, 7)


@settings(max_examples=300)
@given(
    slacks_s=st.lists(st.floats(0.0121, 0.2), min_size=1, max_size=12).map(sorted),
    others_wait=st.booleans(),
)
def test_split_runs_somebody_and_everybody_in_it_is_on_time(slacks_s: list[float], others_wait: bool) -> None:
    assume(all(a <= b for a, b in pairwise(slacks_s)))
    given_up, count = fit_batch(slacks_s, 0.0, batch_s, others_wait)
    chosen = slacks_s[given_up : given_up + count]
    assert count >= 1
    assert len(chosen) == count
    assert min(chosen) >= batch_s(count)
    rates = [
        n / batch_s(n)
        for d in range(len(slacks_s))
        for n in range(1, len(slacks_s) - d + 1)
        if slacks_s[d] >= batch_s(n)
    ]
    if others_wait:  # then it is the best split there is, by brute force
        assert count / batch_s(count) >= max(rates) * (1 - 1e-12)
