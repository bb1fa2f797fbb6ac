from dataclasses import replace

import pytest

from loadtest.records import Generated, Outcome, ServerReport
from loadtest.summary import group_by, summarise
from tests.unit.loadtest.builders import make_record


def test_failures_are_in_every_denominator() -> None:
    records = [make_record(i, outcome=Outcome.REJECTED if i % 4 == 0 else Outcome.OK) for i in range(100)]
    summary = summarise(records, deadline_s=1.0)
    assert (summary.num_offered, summary.num_ok, summary.num_good) == (100, 75, 75)
    assert summary.ok_share is not None
    assert summary.ok_share.value == 0.75
    assert summary.outcomes == {"ok": 75, "rejected": 25}
    assert summary.latency.num_failed == 25
    assert summary.latency.quantile(0.9).refusal == "25 of 100 failed, so p90 is a failure"
    assert summary.latency_of_answers.quantile(0.5).value_s == pytest.approx(0.1)


def test_a_late_answer_is_throughput_and_not_goodput() -> None:
    records = [make_record(i, done_at_s=i + (0.5 if i < 30 else 0.05)) for i in range(100)]
    summary = summarise(records, deadline_s=0.2, window_s=(0.0, 100.0))
    assert (summary.throughput_per_s, summary.goodput_per_s, summary.num_good) == (1.0, 0.7, 70)


def test_an_answer_after_the_window_is_offered_and_not_throughput() -> None:
    records = [make_record(i, done_at_s=i + 10.0) for i in range(100)]
    summary = summarise(records, window_s=(0.0, 100.0))
    assert summary.offered_per_s == 1.0
    assert summary.throughput_per_s == pytest.approx(0.91)


def test_the_deadline_counts_from_the_schedule_even_if_the_generator_was_late() -> None:
    records = [make_record(i, sent_at_s=i + 1.0, done_at_s=i + 1.01) for i in range(20)]
    assert summarise(records, deadline_s=0.5).num_good == 0


def test_without_a_window_the_rate_of_an_even_schedule_is_exact() -> None:
    records = [make_record(i, scheduled_at_s=i / 4) for i in range(100)]
    summary = summarise(records)
    assert (summary.window_start_s, summary.window_end_s, summary.offered_per_s) == (0.0, 25.0, 4.0)


def test_without_a_deadline_there_is_no_goodput_instead_of_a_goodput_of_zero() -> None:
    summary = summarise([make_record(i) for i in range(5)])
    assert (summary.num_good, summary.goodput_per_s, summary.good_share) == (None, None, None)


def test_warm_up_is_left_out_of_everything() -> None:
    records = [make_record(i, is_warm_up=i < 10, outcome=Outcome.TIMEOUT if i < 10 else Outcome.OK) for i in range(30)]
    summary = summarise(records)
    assert (summary.num_warm_up, summary.num_offered, summary.outcomes) == (10, 20, {"ok": 20})
    assert summary.window_start_s == 10.0


def test_bad_inputs_are_counted_apart_by_what_became_of_them() -> None:
    outcomes = [Outcome.CLIENT_ERROR, Outcome.PARTIAL, Outcome.OK, Outcome.SERVER_ERROR, Outcome.REJECTED]
    bad = [make_record(i, outcome=outcome, expects_error=True) for i, outcome in enumerate(outcomes)]
    summary = summarise([make_record(9), *bad])
    assert (summary.num_offered, summary.outcomes) == (1, {"ok": 1})
    report = summary.bad_inputs
    assert (report.num_sent, report.num_answered_with_error, report.num_accepted, report.num_other) == (5, 2, 1, 2)


def test_a_closed_loop_has_no_latency_from_schedule_and_no_lag() -> None:
    records = [make_record(i, scheduled_at_s=None, sent_at_s=float(i), done_at_s=i + 0.5) for i in range(20)]
    summary = summarise(records, deadline_s=1.0)
    assert summary.latency_from_scheduled is None
    assert summary.generator_lag is None
    assert summary.latency.quantile(0.5).value_s == 0.5
    assert (summary.window_end_s, summary.num_good) == (19.5, 20)


def test_no_records_give_no_figures_and_no_failure() -> None:
    summary = summarise([], deadline_s=1.0)
    assert (summary.num_offered, summary.offered_per_s, summary.ok_share, summary.window_start_s) == (
        0,
        None,
        None,
        None,
    )


def test_what_the_server_does_not_report_is_not_counted_as_zero() -> None:
    reports = [ServerReport(energy_j=2.0, energy_source="estimate", cache="miss"), ServerReport(cache="hit"), None]
    records = [make_record(i, server=reports[i % 3], exits=(1 + i % 2,)) for i in range(30)]
    claims = summarise(records).server
    assert claims.energy_j is not None
    assert (claims.energy_j.value, claims.num_energy, claims.energy_sources) == (2.0, 10, {"estimate": 10})
    assert claims.caches == {"hit": 10, "miss": 10}
    assert claims.exits == {"1": 15, "2": 15}
    assert claims.queue_s.num_values == 0


def test_accuracy_is_over_images_with_a_known_label_only() -> None:
    records = [make_record(0, num_images=4, num_correct=3), make_record(1, num_images=9, num_correct=None)]
    summary = summarise(records)
    assert summary.accuracy is not None
    assert (summary.accuracy.value, summary.num_labelled_images) == (0.75, 4)


def test_drops_and_lateness_of_the_generator_are_warned_of() -> None:
    late = [make_record(i, sent_at_s=i + 0.002) for i in range(700)]
    dropped = make_record(700, outcome=Outcome.GENERATOR_DROPPED, sent_at_s=None, done_at_s=None)
    first, second = summarise([*late, dropped]).warnings
    assert first.startswith("1 requests were dropped")
    assert "generator lag p99 is 2.00 ms" in second
    assert summarise([make_record(i) for i in range(700)]).warnings == ()


def test_groups_keep_the_order_of_first_appearance() -> None:
    records = [make_record(i, tenant=name) for i, name in enumerate("bab")]
    assert {name: len(group) for name, group in group_by(records, lambda r: r.tenant).items()} == {"b": 2, "a": 1}


def test_chat_figures_are_of_chat_requests_alone_and_failures_have_no_first_token() -> None:
    generated = Generated(
        gaps_s=(0.01, 0.03), num_tokens=6, num_prompt_tokens=40, num_image_tokens=32, num_cached_tokens=8,
        finish_reasons=("length",),
    )  # fmt: skip
    chats = [
        make_record(i, surface="http_chat", generated=replace(generated, first_token_at_s=i + 0.02)) for i in range(90)
    ]
    whole = make_record(
        90, surface="http_chat_unary", generated=replace(generated, gaps_s=(), finish_reasons=("stop",))
    )
    failed = [
        make_record(i, surface="grpc_chat", outcome=Outcome.REJECTED, error_code="queue_full") for i in range(91, 100)
    ]
    chat = summarise([*chats, whole, *failed, make_record(100)], window_s=(0.0, 101.0)).chat
    assert chat is not None
    assert (chat.num_offered, chat.num_ok, chat.num_streamed) == (100, 91, 90)
    assert chat.first_token.quantile(0.5).value_s == pytest.approx(0.02)
    assert (chat.first_token.num_values, chat.first_token.num_failed) == (90, 9)
    assert (chat.gap.num_values, chat.gap.quantile(0.9).value_s) == (180, 0.03)
    assert (chat.num_tokens, chat.tokens_per_arrival) == (546, 2.0)
    assert chat.tokens_per_s == pytest.approx(546 / 101)
    assert (chat.num_prompt_tokens, chat.num_image_tokens, chat.num_cached_tokens, chat.num_images) == (
        91 * 40, 91 * 32, 91 * 8, 91,
    )  # fmt: skip
    assert chat.finish_reasons == {"length": 90, "stop": 1}
    assert chat.error_codes == {"queue_full": 9}


def test_without_chat_there_are_no_chat_figures() -> None:
    assert summarise([make_record(1)]).chat is None
