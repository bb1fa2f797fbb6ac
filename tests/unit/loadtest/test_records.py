from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.records import Outcome, Record, ServerReport, read_jsonl, write_jsonl

FULL = Record(
    index=3,
    phase="main",
    surface="http_classify",
    tenant="default",
    kind="digit",
    outcome=Outcome.OK,
    scheduled_at_s=1.0,
    sent_at_s=1.25,
    first_chunk_at_s=1.5,
    done_at_s=2.0,
    status="200",
    num_images=2,
    num_correct=1,
    labels=("7", None),
    exits=(1, 4),
    server=ServerReport(operating_point="fast", energy_j=0.0, degraded=("exit",)),
)


def test_latencies_are_differences_of_the_recorded_times() -> None:
    assert FULL.latency_from_scheduled_s == 1.0
    assert FULL.latency_from_sent_s == 0.75
    assert FULL.generator_lag_s == 0.25
    assert FULL.latency_s == 1.0


def test_a_time_that_is_not_known_makes_a_latency_that_is_not_known_and_never_zero() -> None:
    closed = replace(FULL, scheduled_at_s=None)
    assert (closed.latency_from_scheduled_s, closed.generator_lag_s, closed.latency_s) == (None, None, 0.75)
    assert closed.started_at_s == 1.25
    dropped = replace(FULL, sent_at_s=None, done_at_s=None)
    assert (dropped.latency_from_sent_s, dropped.latency_s, dropped.started_at_s) == (None, None, 1.0)


def test_records_survive_the_file(tmp_path: Path) -> None:
    bare = Record(
        index=4,
        phase="p",
        surface="s",
        tenant="t",
        kind="k",
        outcome=Outcome.GENERATOR_DROPPED,
        scheduled_at_s=0.0,
        sent_at_s=None,
    )
    path = tmp_path / "records.jsonl"
    write_jsonl([FULL, bare], path)
    assert read_jsonl(path) == [FULL, bare]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_jsonl([FULL], path)
    path.write_text(path.read_text() + '{"index": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(path)
