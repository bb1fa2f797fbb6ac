import asyncio
import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtest.clients.base import Prepared, Reply
from loadtest.clients.fake import FakeClient
from loadtest.clock import LoopClock
from loadtest.environment import describe_environment
from loadtest.execute import Result, execute
from loadtest.records import Generated, Outcome, read_jsonl
from loadtest.report import render_html, write_repetitions, write_report
from loadtest.scenario import parse_scenario
from loadtest.summary import FORMULAS
from loadtest.tables import Table, all_tables, format_ms, latency_table, load_table, repetitions_table
from loadtest.workloads.mix import build_load
from tests.support.virtual_loop import run_virtual
from tests.unit.loadtest.test_scenario import minimal, phase


def make_result(**fields: Any) -> Result:
    """900 requests; every tenth fails."""
    mix = [{"surface": "http_classify", "tenant": "a"}, {"surface": "grpc_oip", "tenant": "b"}]
    phases = [phase(name="main", arrival={"kind": "uniform", "rate_per_s": 100}, duration_s=9)]
    defaults = {"mix": mix, "phases": phases, "slo": {"deadline_ms": 100, "max_p99_ms": 50}}
    scenario = parse_scenario(minimal(**{**defaults, **fields}), source="x")

    async def work() -> Result:
        client = FakeClient(
            lambda k: 0.01 + (k % 7) / 1000, outcome=lambda k: Outcome.TIMEOUT if k % 10 == 0 else Outcome.OK
        )
        return await execute(scenario, build_load(scenario), client, clock=LoopClock())

    return run_virtual(work())


class Links(HTMLParser):
    """Every attribute that a browser would follow, and every element that would load or run something."""

    LOADING = frozenset({"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"})

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loading: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "style")]
        if tag in self.LOADING:
            self.loading.append(tag)


@pytest.fixture(scope="module")
def result() -> Result:
    return make_result()


def test_the_page_links_to_nothing_outside_and_runs_nothing(result: Result) -> None:
    page = render_html(result, describe_environment())
    links = Links()
    links.feed(page)
    assert links.loading == []
    assert len(links.targets) == 5
    assert all(target.startswith("data:image/png;base64,") for target in links.targets)
    assert "url(" not in page
    assert "@import" not in page
    written_out = set(re.findall(r"https?://[^\s<]+", page))
    assert written_out == {"http://127.0.0.1:8000"}  # the target, as text of the scenario


def test_every_picture_is_a_png(result: Result) -> None:
    pictures = re.findall(r'base64,([^"]+)"', render_html(result, {}))
    assert len(pictures) == 5
    assert all(base64.b64decode(picture).startswith(b"\x89PNG\r\n") for picture in pictures)


def test_what_comes_from_outside_is_escaped() -> None:
    evil = "<script>alert(1)</script>"
    page = render_html(make_result(name=evil, description=evil), {"system": evil})
    assert evil not in page
    assert page.count("&lt;script&gt;") >= 4


def test_every_formula_and_the_whole_scenario_are_in_the_page(result: Result) -> None:
    page = render_html(result, {"python": "3.x"})
    assert all(name in page for name, _ in FORMULAS)
    assert "rate_per_s: 100.0" in page
    assert "Objectives failed" in page


def test_files_hold_the_same_run_and_strict_json(result: Result, tmp_path: Path) -> None:
    html, summary, records = write_report(result, tmp_path / "deep" / "out", {})
    assert html.stat().st_size > 10_000
    assert read_jsonl(records) == list(result.records)

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    data = json.loads(summary.read_text(), parse_constant=no_constants)
    assert (data["summary"]["num_offered"], data["summary"]["num_ok"]) == (900, 810)
    assert data["scenario"]["phases"][0]["arrival"]["rate_per_s"] == 100.0
    assert data["is_passed"] is False


def test_a_run_without_any_request_still_has_a_report(tmp_path: Path) -> None:
    empty = make_result(phases=[phase(arrival={"kind": "trace", "times_s": [5.0]}, duration_s=1)])
    html, *_ = write_report(empty, tmp_path, {})
    assert "Objectives failed" in html.read_text()


def test_tables_show_reasons_instead_of_figures_that_are_refused(result: Result) -> None:
    titles = [table.title for table in all_tables(result)]
    assert "By surface" in titles
    assert "By tenant" in titles
    times = {row[0]: row for row in latency_table(result.summary).rows}
    assert times["latency from scheduled"][1] == "810 + 90 failed"
    assert "is a failure" in times["latency from scheduled"][6]
    assert "p99.9 needs 6636" in times["generator lag"][7]
    (brief,) = load_table({"all": result.summary}, is_brief=True).rows
    assert brief[8] == "failed"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.0, "0"), (0.0001234, "0.123"), (0.0123, "12.3"), (12.3456, "12346")]
)
def test_milliseconds_keep_three_digits(seconds: float | None, text: str) -> None:
    assert format_ms(seconds) == text


def test_the_environment_names_no_host_and_no_user() -> None:
    import getpass
    import socket

    facts = describe_environment()
    assert {"python", "system", "cores usable", "time"} <= set(facts)
    text = " ".join(facts.values()).split()
    assert socket.gethostname() not in text
    assert getpass.getuser() not in text


class ChatClient(FakeClient):
    """Answers in three pieces, the first after 10 ms."""

    async def send(self, prepared: Prepared) -> Reply:
        start_s = asyncio.get_running_loop().time()
        generated = Generated(
            first_token_at_s=start_s + 0.01, gaps_s=(0.002, 0.004), num_tokens=3, finish_reasons=("stop",), text="a cat"
        )
        return replace(await super().send(prepared), generated=generated)


def test_chat_has_its_own_table_and_its_records_survive_the_file(tmp_path: Path) -> None:
    mix = [{"surface": surface, "chat": {"width_px": 16, "height_px": 16}} for surface in ("http_chat", "grpc_chat")]
    phases = [phase(name="main", arrival={"kind": "uniform", "rate_per_s": 100}, duration_s=9)]
    scenario = parse_scenario(minimal(mix=mix, phases=phases), source="x")

    async def work() -> Result:
        return await execute(scenario, build_load(scenario), ChatClient(lambda _: 0.016), clock=LoopClock())

    result = run_virtual(work())
    (table,) = [table for table in all_tables(result) if table.title == "Chat"]
    assert [row[0] for row in table.rows] == ["all", "http_chat", "grpc_chat"]
    # The last of 900 answers comes after the window of 9 s.
    shown = dict(zip(table.head[:5], table.rows[0][:5], strict=True))
    assert shown == {"": "all", "n": "900", "ok": "900", "tokens/s": "299.7", "first token p50 ms": "10"}
    assert "<h2>Chat</h2>" in render_html(result, {})
    write_report(result, tmp_path, {})
    assert read_jsonl(tmp_path / "records.jsonl") == list(result.records)


def test_repetitions_have_a_page_of_their_own_and_it_is_escaped(tmp_path: Path) -> None:
    table = Table(title="Memory", head=("<b>",), rows=(("<script>",),))
    page = write_repetitions([table], tmp_path, {"k": "v"}).read_text()
    assert "<h2>Memory</h2>" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_each_repetition_is_a_row(result: Result) -> None:
    table = repetitions_table([result, make_result(slo={"deadline_ms": 100})])
    rows = [dict(zip(table.head, row, strict=True)) for row in table.rows]
    assert [(row["repetition"], row["n"], row["ok"], row["objectives"]) for row in rows] == [
        ("1", "900", "810", "FAILED"),
        ("2", "900", "810", "passed"),
    ]
    assert rows[0]["first token p50 ms"] == "–"
