from __future__ import annotations

import io
from pathlib import Path

import pytest

from schedulers.lab.mixed import mixed, write_trace
from schedulers.lab.traces import Request, Tokens, TraceError, read_trace, scaled
from schedulers.types import Priority
from tests.support.source_tree import ROOT

OURS = "timestamp_s,tenant,task,priority,latency_ms,energy_j\n"
AZURE = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
MOONCAKE = '{"timestamp": 500, "input_length": 20, "output_length": 3, "hash_ids": [1, 2]}\n'


def read(text: str) -> list[Request]:
    return read_trace(io.StringIO(text))


def test_our_own_layout() -> None:
    first, second = read(OURS + "0.5,ada,classify,high,250,0.125\n\n1,,chat,,,\n")
    assert first == Request(
        arrived_s=0.5, tenant="ada", task="classify", priority=Priority.HIGH, latency_s=0.25, energy_j=0.125
    )
    assert first.deadline_s == 0.75
    assert second == Request(arrived_s=1.0, task="chat")


def test_azures_layout() -> None:
    text = AZURE + "2024-10-15 00:00:00.0040000,2,130,40\n2024-10-15 00:00:01.5040000,0,7,900\n"
    assert read(text) == [
        Request(arrived_s=0.0, task="chat", tokens=Tokens(2, 130, 40)),
        Request(arrived_s=1.5, task="chat", tokens=Tokens(0, 7, 900)),
    ]


def test_zones_and_leap_days_count() -> None:
    first, second = read(AZURE + "2024-02-28T23:59:59Z,0,1,1\n2024-02-29 02:00:00.250+02:00,0,1,1\n")
    assert (first.arrived_s, second.arrived_s) == (0.0, 1.25)


def test_mooncakes_layout() -> None:
    later = MOONCAKE.replace("500", "1500")
    assert read(MOONCAKE + later) == [
        Request(arrived_s=0.5, task="chat", tokens=Tokens(0, 20, 3)),
        Request(arrived_s=1.5, task="chat", tokens=Tokens(0, 20, 3)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the trace is empty"),
        (OURS, "has a header and no request"),
        ("a,b\n1,2\n", "line 1: 'a,b' is no header"),
        ("timestamp_s,task,colour\n", "line 1: unknown columns colour"),
        ("timestamp_s,task,task\n1,a,b\n", "line 1: a column is there twice"),
        (OURS + "0,a,chat,,,\n1,a,chat\n", "line 3: 3 cells for 6 columns"),
        (OURS + "0,a,chat,,,\nx,a,chat,,,\n", "line 3: timestamp_s is 'x'"),
        (OURS + "nan,a,chat,,,\n", "line 2: timestamp_s is nan"),
        (OURS + "-1,a,chat,,,\n", "line 2: timestamp_s is -1"),
        (OURS + "2,a,chat,,,\n1,a,chat,,,\n", "line 3: its time, 1 s, is before"),
        (OURS + "0,a,,,,\n", "line 2: neither task nor model"),
        (OURS + "0,a,chat,urgent,,\n", "line 2: priority is 'urgent'"),
        (OURS + "0,a,chat,,0,\n", "line 2: latency_ms is 0"),
        (OURS + "0,a,chat,,,inf\n", "line 2: energy_j is inf"),
        (OURS + '0,"a,chat,,,\n', "line 2: "),
        ("timestamp_s,task,quality_floor\n0,a,1.5\n", "line 2: quality_floor is 1.5"),
        ("timestamp_s,task,images\n0,chat,2\n", "line 2: images needs prompt_tokens"),
        (AZURE + "2024-10-15 00:00:00,1,2.5,3\n", "line 2: ContextTokens is '2.5'"),
        (AZURE + "yesterday,1,2,3\n", "line 2: TIMESTAMP is 'yesterday'; need"),
        (AZURE + "2023-02-29 00:00:00,1,2,3\n", "line 2: TIMESTAMP is '2023-02-29 00:00:00', and there is no such"),
        (AZURE + "2024-13-01 00:00:00,1,2,3\n", "there is no such time"),
        (AZURE + "2024-12-01 24:00:00,1,2,3\n", "there is no such time"),
        (AZURE + "2024-10-15 00:00:00,1,2,3\n2024-10-15 00:00:01+00:00,1,2,3\n", "line 3: TIMESTAMP has a time zone"),
        (MOONCAKE + "{\n", "line 2: "),
        (MOONCAKE + "[1]\n", "line 2: need an object"),
        (MOONCAKE.replace('"hash_ids": [1, 2]', '"hash_ids": ["x"]'), "line 1: hash_ids"),
        (MOONCAKE.replace("20", "true"), "line 1: input_length is True"),
        (MOONCAKE.replace("20", "-3"), "line 1: input_length is '-3'"),
        (MOONCAKE.replace("500", '"soon"'), "line 1: timestamp is 'soon'"),
    ],
)
def test_a_bad_line_is_named(text: str, message: str) -> None:
    with pytest.raises(TraceError) as refused:
        read(text)
    assert message in str(refused.value)


def test_a_trace_is_played_faster_and_cut() -> None:
    requests = [Request(arrived_s=10.0 + 2.0 * number, task="chat") for number in range(11)]
    assert [one.arrived_s for one in scaled(requests, rate_per_s=1.0)][:3] == [0.0, 1.0, 2.0]
    assert len(scaled(requests, rate_per_s=1.0, duration_s=4.5)) == 5
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="the rate is"):
            scaled(requests, rate_per_s=bad)


def test_the_mixed_trace_is_the_one_that_is_committed() -> None:
    path = ROOT / "examples/traces/mixed.csv"
    made = io.StringIO()
    write_trace(mixed(), made)
    assert path.read_text() == made.getvalue()
    assert path.stat().st_size < 300_000
    with path.open() as lines:
        assert read_trace(lines) == mixed()


def test_the_mixed_trace_has_all_tasks_bursts_and_a_flood() -> None:
    requests = mixed(duration_s=20.0)
    assert {one.task for one in requests} == {"classify", "infer", "chat", "images", "videos"}
    assert len({one.tenant for one in requests}) == 5
    flood = [one.arrived_s for one in requests if one.tenant == "flood"]
    within = sum(7.0 <= arrived_s < 13.0 for arrived_s in flood)
    assert within > 0.7 * len(flood)
    assert mixed(duration_s=20.0) == requests != mixed(seed=1, duration_s=20.0)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with (tmp_path / "one.csv").open("w") as file:
        write_trace([Request(arrived_s=1.25, task="chat", tokens=Tokens(1, 2, 3))], file)
    assert read((tmp_path / "one.csv").read_text()) == [
        Request(arrived_s=1.25, task="chat", tokens=Tokens(1, 2, 3)),
    ]
