"""``vireo classify FILE...``: ask a running system, over HTTP."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.client.options import (
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
from serving.client.told import SERVER_FAULT, asked_plainly


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=AskingCommand)(classify)


def classify(
    files: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP files.", exists=True, dir_okay=False)],
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
    """Classify image files with a running system.

    Exit code 1: the server failed, or an image has no answer; 2: the request must change.
    """
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
    raise typer.Exit(SERVER_FAULT if any("error" in result for result in answer["results"]) else 0)


def _print(files: list[Path], answer: dict[str, Any]) -> None:
    from rich.table import Table

    from serving.client.told import console

    table = Table("file", "label", "score", "exit", "others")
    for path, result in zip(files, answer["results"], strict=True):
        if "error" in result:
            table.add_row(path.name, "-", "-", "-", result["error"]["message"])
            continue
        others = "  ".join(f"{other['label']} {other['score']:.3f}" for other in result["top_k"][1:])
        table.add_row(path.name, result["label"], f"{result['score']:.4f}", str(result["exit"]), others)
    console.print(table)
    report = answer["vireo"]
    console.print(
        f"operating point {report['operating_point']}, {report['energy_j']:.4f} J ({report['energy_source']}), "
        f"queue {report['queue_ms']:.2f} ms, compute {report['compute_ms']:.2f} ms, cache {report['cache']}"
        + (f", degraded: {', '.join(report['degraded'])}" if report["degraded"] else "")
    )
