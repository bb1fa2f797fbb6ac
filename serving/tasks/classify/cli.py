"""``vireo classify FILE...``: ask a running system, over HTTP."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.client.exits import Exit
from serving.client.options import (
    ASKING,
    DEFAULT_URL,
    AskingCommand,
    EnergyOption,
    JsonOption,
    KeyOption,
    LatencyOption,
    ModelOption,
    PriorityOption,
    QualityOption,
    SetOption,
    UrlOption,
    given,
)
from serving.client.told import asked_plainly, joules, plain, reduced, show_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=AskingCommand, rich_help_panel=ASKING, epilog=_EXAMPLES)(classify)


_EXAMPLES = """\b
Examples:
  vireo classify examples/digit-7.png
  vireo classify *.png --top-k 3 --energy-j 0.05 --json
  vireo classify a.png --model ID --help

The last one lists the settings of the model, each of which is an option.
Exit code 5: some of several images have no answer.
"""


def classify(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="JPEG, PNG or WebP files.", exists=True, dir_okay=False)
    ],
    model: ModelOption = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 1,
    latency_ms: LatencyOption = None,
    energy_j: EnergyOption = None,
    quality_floor: QualityOption = None,
    priority: PriorityOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Classify image files."""
    from serving.client.http import Client

    budget = given(latency_ms=latency_ms, energy_j=energy_j, quality_floor=quality_floor, priority=priority)
    with asked_plainly(as_json=as_json), Client(url, api_key) as client:
        chosen, values = client.choose("classify", model, settings)
        answer = client.ask(
            "POST",
            "/v1/classify",
            {
                "model": chosen,
                "images": [base64.b64encode(path.read_bytes()).decode() for path in files],
                "top_k": top_k,
                "vireo": {**budget, "settings": values},
            },
        )
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(files, answer)
    raise typer.Exit(exit_code_of(answer["results"]))


def exit_code_of(results: list[dict[str, Any]]) -> Exit:
    """Return what the command ends with, by what became of each image."""
    from serving.client.http import failure_in

    failures = [result for result in results if "error" in result]
    if failures and len(failures) < len(results):
        return Exit.PARTLY
    first = failure_in(failures[0]) if failures else None
    return first.exit_code if first is not None else Exit.FAILED if failures else Exit.OK


def _print(files: list[Path], answer: dict[str, Any]) -> None:
    rows = []
    for path, result in zip(files, answer["results"], strict=True):
        if "error" in result:
            rows.append((path.name, "-", "-", "-", result["error"]["message"]))
            continue
        others = "  ".join(f"{other['label']} {other['score']:.3f}" for other in result["top_k"][1:])
        rows.append((path.name, result["label"], f"{result['score']:.4f}", str(result["exit"]), others))
    show_table(("file", "label", "score", "exit", "others"), rows)
    report = answer["vireo"]
    line = (
        f"operating point {report['operating_point']}\n{joules(report, '.4f')}, "
        f"queue {report['queue_ms']:.2f} ms, compute {report['compute_ms']:.2f} ms, cache {report['cache']}"
        + (f", {words}" if (words := reduced(report)) else "")
    )
    typer.echo(plain(line))
