"""``vireo image [PROMPT] [--image FILE] --out FILE``: ask a running system for a picture, over HTTP."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Annotated

import typer

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
from serving.client.told import Failed, asked_plainly, plain

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=AskingCommand, rich_help_panel=ASKING, epilog=_EXAMPLES)(image)


_EXAMPLES = """\b
Examples:
  vireo image "a lighthouse at dusk" -o lighthouse.png
  vireo image --image noisy.png --out clean.png --denoise 0.8

With --model ID, --help lists the settings of the model.
"""


def image(
    prompt: Annotated[str, typer.Argument(help="What the picture shows; leave out if the model takes no text.")] = "",
    source: Annotated[
        Path | None, typer.Option("--image", help="A picture to change.", exists=True, dir_okay=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .png, .jpg or .webp.")] = Path("image.png"),
    model: ModelOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the picture repeatable.")] = None,
    latency_ms: LatencyOption = None,
    energy_j: EnergyOption = None,
    quality_floor: QualityOption = None,
    priority: PriorityOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Make a picture from a prompt, or change one."""
    from serving.client.http import Client

    budget = given(latency_ms=latency_ms, energy_j=energy_j, quality_floor=quality_floor, priority=priority)
    with asked_plainly(as_json=as_json), Client(url, api_key) as client:
        if out.suffix.lower() not in _FORMATS:
            raise Failed(f"{out.name} is not the name of a picture; end it in {', '.join(_FORMATS)}")
        chosen, values = client.choose("images", model, settings)
        body = given(
            model=chosen,
            prompt=prompt,
            seed=seed,
            output_format=_FORMATS[out.suffix.lower()],
            image=None if source is None else base64.b64encode(source.read_bytes()).decode(),
            vireo={**budget, "settings": values, "background": False},
        )
        answer = client.ask("POST", f"/v1/images/{'generations' if source is None else 'edits'}", body)
        out.write_bytes(base64.b64decode(answer["data"][0].pop("b64_json")))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    report = answer["vireo"]
    line = (
        f"{out}: {answer['size']}, operating point {report['operating_point']}, {report['energy_j']:.4f} J "
        f"({report['energy_source']}), queue {report['queue_ms']:.2f} ms, compute {report['compute_ms']:.2f} ms, "
        f"cache {report['cache']}" + (f", degraded: {', '.join(report['degraded'])}" if report["degraded"] else "")
    )
    typer.echo(plain(line))
