"""The report of a run: one HTML file without any link to the outside, a JSON summary, and the records."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

import yaml

from loadtest import plots
from loadtest.execute import Result
from loadtest.records import write_jsonl
from loadtest.summary import FORMULAS
from loadtest.tables import Table, all_tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a202c; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13px; }
th, td { border-bottom: 1px solid #e2e8f0; padding: .25rem .6rem; text-align: left; vertical-align: top; }
th { background: #f7fafc; } h2 { margin-top: 2rem; } img { max-width: 100%; }
pre { background: #f7fafc; padding: .8rem; overflow-x: auto; font-size: 12px; }
.verdict { font-weight: 700; } .passed { color: #2f855a; } .failed, .warning { color: #c53030; }
"""


def write_report(result: Result, out_dir: Path, environment: Mapping[str, str]) -> list[Path]:
    """Write ``report.html``, ``summary.json`` and ``records.jsonl`` into ``out_dir``, which is made if need be.

    Returns: the three paths.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    html, summary, records = (out_dir / name for name in ("report.html", "summary.json", "records.jsonl"))
    html.write_text(render_html(result, environment), encoding="utf-8")
    summary.write_text(json.dumps(to_json(result, environment), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    write_jsonl(result.records, records)
    return [html, summary, records]


def write_repetitions(tables: Sequence[Table], out_dir: Path, environment: Mapping[str, str]) -> Path:
    """Write ``repetitions.html``: what was the same and what was not from one repetition of a run to the next."""
    path = out_dir / "repetitions.html"
    facts = Table(title="Environment of the generator", head=("", ""), rows=tuple(environment.items()))
    path.write_text(_page("Load test, repeated", [_table(table) for table in (*tables, facts)]), encoding="utf-8")
    return path


def to_json(result: Result, environment: Mapping[str, str]) -> dict[str, object]:
    """Everything but the records, as plain JSON types."""
    return {
        "scenario": result.scenario.model_dump(mode="json"),
        "environment": dict(environment),
        "is_passed": result.is_passed,
        "was_stopped": result.was_stopped,
        "slo": [asdict(check) for check in result.slo],
        "windows": [asdict(window) for window in result.windows],
        "summary": asdict(result.summary),
        "phases": {name: asdict(summary) for name, summary in result.phases.items()},
        "shifts": [asdict(shift) | {"p99_ratio": shift.ratio(0.99)} for shift in result.shifts],
        "formulas": dict(FORMULAS),
    }


def render_html(result: Result, environment: Mapping[str, str]) -> str:
    """The whole page. Everything that comes from outside is escaped."""
    sections = [
        f"<p>{escape(result.scenario.description)}</p>",
        _verdict(result),
        *(_table(table) for table in all_tables(result)),
        _pictures(result),
        _table(Table(title="Formulas", head=("figure", "definition"), rows=FORMULAS)),
        _table(Table(title="Environment of the generator", head=("", ""), rows=tuple(environment.items()))),
        _section("Scenario", f"<pre>{escape(_scenario_yaml(result))}</pre>"),
    ]
    return _page(f"Load test: {result.scenario.name}", sections)


def _page(title: str, sections: Sequence[str]) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *sections])
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _verdict(result: Result) -> str:
    word = "passed" if result.is_passed else "failed"
    lines = [f'<p class="verdict {word}">Objectives {word}.</p>']
    if result.was_stopped:
        lines.append('<p class="warning">The run was stopped before its end.</p>')
    lines += [f'<p class="warning">{escape(warning)}.</p>' for warning in result.summary.warnings]
    return "\n".join(lines)


def _pictures(result: Result) -> str:
    deadline_s = result.summary.deadline_s
    records = result.records
    pictures: Sequence[tuple[str, Callable[[], bytes]]] = (
        (
            "Latency: share of offered requests answered within x (open phases)",
            lambda: plots.draw_ecdf(result.main_records, deadline_s),
        ),
        ("Latency over time", lambda: plots.draw_latency_over_time(records, deadline_s)),
        ("Outcomes over time", lambda: plots.draw_outcomes(records)),
        ("In flight", lambda: plots.draw_in_flight(records)),
        ("Generator lag", lambda: plots.draw_generator_lag(records)),
    )
    if not records:
        return ""
    return "\n".join(_section(title, _image(draw(), title)) for title, draw in pictures)


def _image(png: bytes, title: str) -> str:
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return _section(table.title, f"<table><tr>{head}</tr>\n{rows}</table>")


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}"


def _scenario_yaml(result: Result) -> str:
    return yaml.safe_dump(result.scenario.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
