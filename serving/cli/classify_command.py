"""``vireo classify FILE...``: ask a running system, over HTTP."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(classify)


def classify(
    files: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP files.", exists=True, dir_okay=False)],
    model: Annotated[str | None, typer.Option(help="Model id; the first that classifies when absent.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show for each image.")] = 1,
    latency_ms: Annotated[float | None, typer.Option(help="Latency budget, milliseconds.")] = None,
    energy_j: Annotated[float | None, typer.Option(help="Energy budget, joules.")] = None,
    quality_floor: Annotated[float | None, typer.Option(help="Least held-out accuracy, 0 to 1.")] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal or high.")] = None,
    url: Annotated[str, typer.Option(envvar="VIREO_URL", help="Where the system listens.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(envvar="VIREO_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
) -> None:
    """Classify image files with a running system. Exit code 1 if any image has no answer."""
    url = url.rstrip("/")
    budget = {"latency_ms": latency_ms, "energy_j": energy_j, "quality_floor": quality_floor, "priority": priority}
    body = {
        "model": model or _first_classifier(url, api_key),
        "images": [base64.b64encode(path.read_bytes()).decode() for path in files],
        "top_k": top_k,
        "vireo": {name: value for name, value in budget.items() if value is not None},
    }
    status, answer = _ask("POST", f"{url}/v1/classify", api_key, body)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    elif status == 200:
        _print(files, answer)
    else:
        error = answer["error"]
        typer.echo(f"vireo: {error['code']}: {error['message']}", err=True)
    failed = status != 200 or any("error" in result for result in answer["results"])
    raise typer.Exit(1 if failed else 0)


def _first_classifier(url: str, api_key: str | None) -> str:
    status, listing = _ask("GET", f"{url}/v1/models", api_key)
    if status != 200:
        typer.echo(f"vireo: {listing['error']['code']}: {listing['error']['message']}", err=True)
        raise typer.Exit(1)
    ids = [str(model["id"]) for model in listing["data"] if "num_classes" in model["vireo"]]
    if not ids:
        typer.echo(f"vireo: no model that classifies is served at {url}; see `vireo status`", err=True)
        raise typer.Exit(1)
    return ids[0]


def _ask(method: str, url: str, api_key: str | None, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    import httpx

    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.request(method, url, json=body, headers=headers, timeout=60)
        return answer.status_code, answer.json()
    except (httpx.HTTPError, ValueError) as error:
        typer.echo(f"vireo: cannot reach {url} ({error}); is the system up? `vireo status`, `vireo up`", err=True)
        raise typer.Exit(2) from None


def _print(files: list[Path], answer: dict[str, Any]) -> None:
    columns = os.environ.get("COLUMNS")
    console = Console(width=int(columns) if columns else None)
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
