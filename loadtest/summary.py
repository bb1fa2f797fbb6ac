"""From records to figures. Every figure says over what it is taken; the formulas are in ``FORMULAS`` and in the report.

Warm-up requests are left out of everything. Deliberately bad inputs are counted apart, because an error is the right
answer to them. All other requests are *offered*: every one is in every denominator, however it ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.records import ANSWERED_WITH_ERROR, CHAT_SURFACES, GENERATOR_FAULTS, Outcome, Record
from loadtest.stats import Distribution, Interval, describe, mean_interval, share_interval

MAX_CREDIBLE_LAG_S = 0.001
"""Generator lag at p99 above which the instrument itself blurs the figures."""

FORMULAS: tuple[tuple[str, str], ...] = (
    ("window", "from the first moment a request was due to the end of the schedule, warm-up excluded (W seconds)"),
    ("offered", "requests due in the window, bad inputs excluded (N)"),
    ("offered rate", "N / W"),
    ("throughput", "requests answered in full whose last byte arrived in the window / W"),
    ("good", "answered in full within the deadline, counted from the scheduled time (closed loop: from sending)"),
    ("goodput", "good requests / W"),
    ("good share", "good requests / N, with Clopper-Pearson 95% interval"),
    ("latency from scheduled", "last byte - scheduled time; failures count as infinitely slow"),
    ("latency from sent", "last byte - time handed to the client; failures count as infinitely slow"),
    (
        "latency of answers",
        "as from scheduled, over answered requests only; flatters a server that fails, read it second",
    ),
    ("first chunk", "first byte of the body - scheduled time, over answered requests"),
    ("generator lag", "time handed to the client - scheduled time, over all requests sent; the instrument's own error"),
    ("p-quantile", "value number ceil(q n) of n sorted values; refused below the floor q^n + n(1-q)q^(n-1) <= 0.01"),
    ("interval of a quantile", "order statistics with binomial coverage >= 95%; assumes independent requests"),
    ("interval of a mean", "circular block bootstrap, blocks of n^(1/3), 1,000 resamples, seeded"),
    ("energy, queue, compute", "as the server reports them in its vireo block, over answers that report them"),
    (
        "first token",
        "arrival of the first text of a streamed chat answer - scheduled time; failures are infinitely slow",
    ),
    (
        "gap",
        "time between two arrivals of text in one answer, all answers together; text that came at once is one arrival",
    ),
    ("tokens per second", "tokens, by the server's count, of the chat answers that ended in the window / W"),
    ("accuracy", "images whose label is the expected one / images answered that had an expected label"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInputs:
    """What became of deliberately bad requests."""

    num_sent: int
    num_answered_with_error: int
    """Got a typed error, as they should."""
    num_accepted: int
    """Were answered as if nothing was wrong."""
    num_other: int
    """Anything else: time-outs, server errors, rejections, lost connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerClaims:
    """What the server says about itself in its ``vireo`` blocks."""

    energy_j: Interval | None
    """Mean joules per answered request that reports them."""
    num_energy: int
    energy_sources: dict[str, int]
    queue_s: Distribution
    compute_s: Distribution
    operating_points: dict[str, int]
    caches: dict[str, int]
    degraded: dict[str, int]
    exits: dict[str, int]
    """Images answered by each exit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFigures:
    """Of the chat requests among those offered."""

    num_offered: int
    num_ok: int
    num_streamed: int
    """Answered requests whose text came in pieces."""
    first_token: Distribution
    """Of streamed requests; those without an answer count as infinitely slow."""
    gap: Distribution
    tokens_per_s: float | None
    num_tokens: int
    tokens_per_arrival: float | None
    """Over streamed answers: 1 means that every token came alone."""
    num_prompt_tokens: int
    num_image_tokens: int
    num_cached_tokens: int
    num_images: int
    finish_reasons: dict[str, int]
    error_codes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of a set of records."""

    window_start_s: float | None
    window_end_s: float | None
    deadline_s: float | None
    num_warm_up: int
    num_offered: int
    num_sent: int
    num_ok: int
    num_good: int | None
    outcomes: dict[str, int]
    error_codes: dict[str, int]
    offered_per_s: float | None
    throughput_per_s: float | None
    goodput_per_s: float | None
    ok_share: Interval | None
    good_share: Interval | None
    latency_from_scheduled: Distribution | None
    """``None`` in a closed loop."""
    latency_from_sent: Distribution
    latency_of_answers: Distribution
    first_chunk: Distribution
    generator_lag: Distribution | None
    """``None`` in a closed loop."""
    accuracy: Interval | None
    num_labelled_images: int
    server: ServerClaims
    bad_inputs: BadInputs
    warnings: tuple[str, ...]
    chat: ChatFigures | None = None
    """``None`` if nothing was asked of a chat model."""

    @property
    def latency(self) -> Distribution:
        """From scheduled where there is a schedule, else from sent."""
        return self.latency_from_sent if self.latency_from_scheduled is None else self.latency_from_scheduled


def summarise(
    records: Sequence[Record],
    *,
    deadline_s: float | None = None,
    window_s: tuple[float, float] | None = None,
    seed: int = 0,
) -> Summary:
    """All figures of ``records``.

    ``window_s`` is the measured time as (start, end) in seconds of the run. Without it: in an open loop from the
    first scheduled time to one mean gap after the last, in a closed loop from the first sending to the last end.
    ``deadline_s`` is what makes an answer good; without it there is no goodput. ``seed`` seeds the bootstrap.
    """
    measured = [record for record in records if not record.is_warm_up]
    offered = [record for record in measured if not record.expects_error]
    ok = [record for record in offered if record.outcome is Outcome.OK]
    good = None if deadline_s is None else [record for record in ok if _is_within(record, deadline_s)]
    start_s, end_s = window_s or _window(measured)
    per_s = _rate(start_s, end_s)
    lag = _lag(offered, seed)
    return Summary(
        window_start_s=start_s,
        window_end_s=end_s,
        deadline_s=deadline_s,
        num_warm_up=len(records) - len(measured),
        num_offered=len(offered),
        num_sent=sum(record.sent_at_s is not None for record in offered),
        num_ok=len(ok),
        num_good=None if good is None else len(good),
        outcomes=_counts(record.outcome.value for record in offered),
        error_codes=_counts(record.error_code for record in offered),
        offered_per_s=per_s(len(offered)),
        throughput_per_s=per_s(_num_done_between(ok, start_s, end_s)),
        goodput_per_s=None if good is None else per_s(len(good)),
        ok_share=share_interval(len(ok), len(offered)),
        good_share=None if good is None else share_interval(len(good), len(offered)),
        latency_from_scheduled=_latency(offered, ok, lambda record: record.latency_from_scheduled_s, seed)
        if _has_schedule(offered)
        else None,
        latency_from_sent=_latency(offered, ok, lambda record: record.latency_from_sent_s, seed),
        latency_of_answers=_latency(ok, ok, lambda record: record.latency_s, seed),
        first_chunk=_latency(ok, ok, _first_chunk_s, seed),
        generator_lag=lag,
        accuracy=_accuracy(ok),
        num_labelled_images=_num_labelled(ok),
        server=_server_claims(ok, seed),
        bad_inputs=_bad_inputs(record for record in measured if record.expects_error),
        warnings=tuple(_warnings(offered, lag)),
        chat=_chat([record for record in offered if record.surface in CHAT_SURFACES], start_s, end_s, seed),
    )


def group_by(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    """Records by phase, surface, tenant or whatever ``key`` says, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _window(measured: Sequence[Record]) -> tuple[float | None, float | None]:
    if not measured:
        return None, None
    starts = [record.started_at_s for record in measured]
    first_s, last_s = min(starts), max(starts)
    if _has_schedule(measured):
        gap_s = (last_s - first_s) / (len(starts) - 1) if len(starts) > 1 else 0.0
        return first_s, last_s + gap_s
    return first_s, max([last_s, *(record.done_at_s for record in measured if record.done_at_s is not None)])


def _rate(start_s: float | None, end_s: float | None) -> Callable[[int], float | None]:
    if start_s is None or end_s is None or end_s <= start_s:
        return lambda _: None
    length_s = end_s - start_s
    return lambda num: num / length_s


def _num_done_between(records: Iterable[Record], start_s: float | None, end_s: float | None) -> int:
    if start_s is None or end_s is None:
        return 0
    return sum(record.done_at_s is not None and start_s <= record.done_at_s <= end_s for record in records)


def _has_schedule(records: Sequence[Record]) -> bool:
    return bool(records) and all(record.scheduled_at_s is not None for record in records)


def _is_within(record: Record, deadline_s: float) -> bool:
    return record.latency_s is not None and record.latency_s <= deadline_s


def _latency(
    counted: Sequence[Record], ok: Sequence[Record], measure: Callable[[Record], float | None], seed: int
) -> Distribution:
    values = [value for record in ok if (value := measure(record)) is not None]
    return describe(values, num_failed=len(counted) - len(values), seed=seed)


def _lag(offered: Sequence[Record], seed: int) -> Distribution | None:
    if not _has_schedule(offered):
        return None
    return describe([lag for record in offered if (lag := record.generator_lag_s) is not None], seed=seed)


def _first_chunk_s(record: Record) -> float | None:
    return None if record.first_chunk_at_s is None else record.first_chunk_at_s - record.started_at_s


def _accuracy(ok: Sequence[Record]) -> Interval | None:
    return share_interval(sum(record.num_correct or 0 for record in ok), _num_labelled(ok))


def _num_labelled(ok: Sequence[Record]) -> int:
    return sum(record.num_images for record in ok if record.num_correct is not None)


def _server_claims(ok: Sequence[Record], seed: int) -> ServerClaims:
    reports = [record.server for record in ok if record.server is not None]
    joules = [report.energy_j for report in reports if report.energy_j is not None]
    return ServerClaims(
        energy_j=mean_interval(joules, seed=seed) if joules else None,
        num_energy=len(joules),
        energy_sources=_counts(report.energy_source for report in reports),
        queue_s=describe([report.queue_ms / 1000 for report in reports if report.queue_ms is not None], seed=seed),
        compute_s=describe(
            [report.compute_ms / 1000 for report in reports if report.compute_ms is not None], seed=seed
        ),
        operating_points=_counts(report.operating_point for report in reports),
        caches=_counts(report.cache for report in reports),
        degraded=_counts(item for report in reports for item in report.degraded),
        exits=_counts(str(exit_) for record in ok for exit_ in record.exits),
    )


def _chat(offered: Sequence[Record], start_s: float | None, end_s: float | None, seed: int) -> ChatFigures | None:
    if not offered:
        return None
    answers = [(record, record.generated) for record in offered if record.outcome is Outcome.OK and record.generated]
    streamed = [generated for _, generated in answers if generated.first_token_at_s is not None]
    firsts = [seconds for record, _ in answers if (seconds := record.first_token_s) is not None]
    gaps = [gap for generated in streamed for gap in generated.gaps_s]
    per_s = _rate(start_s, end_s)
    in_window = [item for record, item in answers if _num_done_between([record], start_s, end_s)]
    num_lost = sum(record.surface != "http_chat_unary" and record.outcome is not Outcome.OK for record in offered)
    num_arrivals = len(gaps) + len(streamed)

    def total(field: str) -> int:
        return sum(getattr(generated, field) or 0 for _, generated in answers)

    return ChatFigures(
        num_offered=len(offered),
        num_ok=len(answers),
        num_streamed=len(streamed),
        first_token=describe(firsts, num_failed=num_lost, seed=seed),
        gap=describe(gaps, seed=seed),
        tokens_per_s=per_s(sum(generated.num_tokens or 0 for generated in in_window)),
        num_tokens=total("num_tokens"),
        tokens_per_arrival=sum(item.num_tokens or 0 for item in streamed) / num_arrivals if num_arrivals else None,
        num_prompt_tokens=total("num_prompt_tokens"),
        num_image_tokens=total("num_image_tokens"),
        num_cached_tokens=total("num_cached_tokens"),
        num_images=sum(record.num_images for record, _ in answers),
        finish_reasons=_counts(reason for _, generated in answers for reason in generated.finish_reasons),
        error_codes=_counts(record.error_code for record in offered),
    )


def _bad_inputs(records: Iterable[Record]) -> BadInputs:
    outcomes = [record.outcome for record in records]
    num_errors = sum(outcome in ANSWERED_WITH_ERROR for outcome in outcomes)
    num_accepted = sum(outcome is Outcome.OK for outcome in outcomes)
    return BadInputs(
        num_sent=len(outcomes),
        num_answered_with_error=num_errors,
        num_accepted=num_accepted,
        num_other=len(outcomes) - num_errors - num_accepted,
    )


def _warnings(offered: Sequence[Record], lag: Distribution | None) -> Iterable[str]:
    faults = sum(record.outcome in GENERATOR_FAULTS for record in offered)
    if faults:
        yield f"{faults} requests were dropped or broken by the generator; the load offered is not the load planned"
    p99 = None if lag is None else lag.quantile(0.99).value_s
    if p99 is not None and p99 > MAX_CREDIBLE_LAG_S:
        yield (
            f"generator lag p99 is {p99 * 1e3:.2f} ms, over {MAX_CREDIBLE_LAG_S * 1e3:g} ms: the generator was late; "
            "trust latency from scheduled as an upper bound, lower the rate or give the generator its own core"
        )


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))
