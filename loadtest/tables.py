"""The tables of a run as rows of text, for the terminal and for the report alike.

A figure that is refused shows its reason, never a blank and never a 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.execute import Result
from loadtest.isolation import TenantShift
from loadtest.records import Record
from loadtest.stats import Distribution, Interval, Quantile
from loadtest.summary import ChatFigures, Summary, group_by, summarise

NONE = "–"
_COMPARED = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title, column heads, rows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def all_tables(result: Result) -> list[Table]:
    """Every table of the report, in order."""
    main = result.summary
    tables = [
        slo_table(result),
        load_table({"all": main, **result.phases}),
        latency_table(main),
        load_table(_by(result, "surface"), title="By surface"),
        load_table(_by(result, "tenant"), title="By tenant"),
        isolation_table(result),
        *chat_tables(result),
        counts_table("Outcomes", main.outcomes, main.num_offered),
        counts_table("Error codes", main.error_codes, main.num_offered),
        bad_inputs_table(main),
        server_table(main),
    ]
    return [table for table in tables if table.rows]


def slo_table(result: Result) -> Table:
    """Objectives."""
    rows = [(check.name, check.limit, check.value, "passed" if check.is_passed else "FAILED") for check in result.slo]
    return Table(title="Objectives", head=("objective", "limit", "shown", ""), rows=tuple(rows))


def load_table(summaries: Mapping[str, Summary], *, title: str = "Load", is_brief: bool = False) -> Table:
    """One row per summary; ``is_brief`` leaves out the intervals. A quantile of too few samples reads "n<FLOOR"."""
    head = ("", "n", "ok", "n/s", "ok/s", "good/s", "good share", "p50 ms", "p99 ms", "lag p99")
    rows = tuple(_load_row(name, item, is_brief) for name, item in summaries.items())
    return Table(title=title, head=head, rows=rows)


def repetitions_table(results: Sequence[Result]) -> Table:
    """One row per repetition of a scenario."""
    head = ("repetition", "n", "ok", "ok/s", "p50 ms", "p99 ms", "first token p50 ms", "tokens/s", "objectives")
    rows = tuple(_repetition_row(number, result) for number, result in enumerate(results, start=1))
    return Table(title="Repetitions", head=head, rows=rows)


def _repetition_row(number: int, result: Result) -> tuple[str, ...]:
    summary, chat = result.summary, result.summary.chat
    return (
        str(number),
        str(summary.num_offered),
        str(summary.num_ok),
        _number(summary.throughput_per_s),
        _brief(summary.latency.quantile(0.5)),
        _brief(summary.latency.quantile(0.99)),
        NONE if chat is None else _brief(chat.first_token.quantile(0.5)),
        NONE if chat is None else _number(chat.tokens_per_s),
        "passed" if result.is_passed else "FAILED",
    )


def latency_table(summary: Summary, *, is_brief: bool = False) -> Table:
    """Quantiles, one row per way of measuring; ``is_brief`` leaves out the intervals and the reasons of refusals."""
    series = {
        "latency from scheduled": summary.latency_from_scheduled,
        "latency from sent": summary.latency_from_sent,
        "latency of answers": summary.latency_of_answers,
        "first chunk": summary.first_chunk,
        "first token (chat)": None if summary.chat is None else summary.chat.first_token,
        "gap between tokens (chat)": None if summary.chat is None else summary.chat.gap,
        "generator lag": summary.generator_lag,
        "queue (server's word)": summary.server.queue_s,
        "compute (server's word)": summary.server.compute_s,
    }
    shown = {name: item for name, item in series.items() if item is not None and item.num_values + item.num_failed > 0}
    quantiles = [entry.q for entry in summary.latency.quantiles]
    head = ("milliseconds", "n", "mean", *(f"p{100 * q:g}" for q in quantiles), "max")
    return Table(
        title="Times", head=head, rows=tuple(_latency_row(name, item, is_brief) for name, item in shown.items())
    )


def isolation_table(result: Result) -> Table:
    """Each tenant without and with the attack that a scenario compares; a ratio is shown where both figures are."""
    rows = [
        (
            shift.tenant + (" (protected)" if shift.is_protected else ""),
            *(str(each.num_values + each.num_failed) for each in (shift.baseline, shift.attacked)),
            *(cell for q in _COMPARED for cell in _shift_cells(shift, q)),
        )
        for shift in result.shifts
    ]
    times = [name for q in _COMPARED for name in (f"p{100 * q:g} ms without", "with", "ratio")]
    return Table(title="With and without the attack", head=("", "n without", "n with", *times), rows=tuple(rows))


def _shift_cells(shift: TenantShift, q: float) -> tuple[str, str, str]:
    before, after = (_brief(each.quantile(q)) for each in (shift.baseline, shift.attacked))
    return before, after, _number(shift.ratio(q))


def chat_tables(result: Result) -> list[Table]:
    """Figures of chat, all together and by surface; none if there was no chat."""
    main = result.summary
    if main.chat is None:
        return []
    surfaces = {name: item for name, item in _by(result, "surface").items() if item.chat is not None}
    rows = tuple(_chat_row(name, item.chat) for name, item in {"all": main, **surfaces}.items() if item.chat)
    head = (
        "", "n", "ok", "tokens/s", "first token p50 ms", "p99", "gap p50 ms", "p99", "tokens/arrival", "tokens",
        "images", "image tokens", "prompt tokens", "of them cached", "finish reasons", "error codes",
    )  # fmt: skip
    return [Table(title="Chat", head=head, rows=rows)]


def _chat_row(name: str, chat: ChatFigures) -> tuple[str, ...]:
    is_streamed = chat.num_streamed > 0
    times = [entry.quantile(q) for entry in (chat.first_token, chat.gap) for q in (0.5, 0.99)]
    return (
        name,
        str(chat.num_offered),
        str(chat.num_ok),
        _number(chat.tokens_per_s),
        *(_brief(entry) if is_streamed else NONE for entry in times),
        _number(chat.tokens_per_arrival),
        str(chat.num_tokens),
        str(chat.num_images),
        str(chat.num_image_tokens),
        str(chat.num_prompt_tokens),
        str(chat.num_cached_tokens),
        _counts(chat.finish_reasons) or NONE,
        _counts(chat.error_codes) or NONE,
    )


def counts_table(title: str, counts: Mapping[str, int], total: int) -> Table:
    """Counts and their share of all offered requests."""
    rows = [(name, str(num), f"{num / total:.2%}") for name, num in counts.items()]
    return Table(title=title, head=("", "requests", "share of offered"), rows=tuple(rows))


def bad_inputs_table(summary: Summary) -> Table:
    """What became of deliberately bad inputs."""
    bad = summary.bad_inputs
    row = (str(bad.num_sent), str(bad.num_answered_with_error), str(bad.num_accepted), str(bad.num_other))
    head = ("sent", "answered with a typed error", "accepted", "anything else")
    return Table(title="Bad inputs (not in any other figure)", head=head, rows=(row,) if bad.num_sent else ())


def server_table(summary: Summary) -> Table:
    """What the server says of itself."""
    claims = summary.server
    energy = f"{format_interval(claims.energy_j)} J (mean of {claims.num_energy}; {_counts(claims.energy_sources)})"
    accuracy = f"{format_interval(summary.accuracy)} of {summary.num_labelled_images} images"
    rows = {
        "energy per answer": energy if claims.energy_j else "",
        "operating points": _counts(claims.operating_points),
        "exits": _counts(claims.exits),
        "cache": _counts(claims.caches),
        "degraded": _counts(claims.degraded),
        "labels as drawn": accuracy if summary.accuracy else "",
    }
    return Table(
        title="What the server reports",
        head=("", ""),
        rows=tuple((name, text) for name, text in rows.items() if text),
    )


def format_interval(interval: Interval | None) -> str:
    """Value and 95% interval."""
    return NONE if interval is None else f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def format_ms(seconds: float | None) -> str:
    """Milliseconds with three significant digits."""
    return NONE if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 1.0 else f"{seconds * 1e3:.0f}"


def format_quantile(entry: Quantile) -> str:
    """Value and interval in milliseconds, or why there is none."""
    if entry.value_s is None:
        return entry.refusal or NONE
    high = "∞" if entry.high_s is None else format_ms(entry.high_s)
    return f"{format_ms(entry.value_s)} [{format_ms(entry.low_s)}, {high}]"


def _by(result: Result, field: str) -> dict[str, Summary]:
    """Summaries of the main phases by a field; none if the field has one value only."""
    main = result.summary
    if main.window_start_s is None or main.window_end_s is None:
        return {}

    def key(record: Record) -> str:
        return str(getattr(record, field))

    groups = group_by(result.main_records, key)
    span = (main.window_start_s, main.window_end_s)
    if len(groups) < 2:
        return {}
    return {name: summarise(group, deadline_s=main.deadline_s, window_s=span) for name, group in groups.items()}


def _load_row(name: str, summary: Summary, is_brief: bool) -> tuple[str, ...]:
    lag, good = summary.generator_lag, summary.good_share
    return (
        name,
        str(summary.num_offered),
        str(summary.num_ok),
        _number(summary.offered_per_s),
        _number(summary.throughput_per_s),
        _number(summary.goodput_per_s),
        _number(good.value) if is_brief and good else format_interval(good),
        _brief(summary.latency.quantile(0.5)),
        _brief(summary.latency.quantile(0.99)),
        NONE if lag is None else _brief(lag.quantile(0.99)),
    )


def _latency_row(name: str, item: Distribution, is_brief: bool) -> tuple[str, ...]:
    show = _brief if is_brief else format_quantile
    num = str(item.num_values) if not item.num_failed else f"{item.num_values} + {item.num_failed} failed"
    mean = NONE if item.mean_s is None else format_ms(item.mean_s.value)
    return (name, num, mean, *(show(entry) for entry in item.quantiles), format_ms(item.max_s))


def _brief(entry: Quantile) -> str:
    if entry.value_s is not None:
        return format_ms(entry.value_s)
    return f"n<{entry.num_required}" if entry.num_samples < entry.num_required else "failed"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}" if abs(value) < 1000.0 else f"{value:.0f}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {num}" for name, num in counts.items())
