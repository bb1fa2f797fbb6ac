"""``vireo image [PROMPT] [--image FILE] --out FILE``: ask a running system for a picture, over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
    QuietOption,
    SetOption,
    UrlOption,
    given,
)
from serving.client.told import Failed, asked_plainly, joules, plain, reduced, whole

_PATH = "/v1/images"
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=AskingCommand, rich_help_panel=ASKING, epilog=_EXAMPLES)(image)


_EXAMPLES = """\b
Examples:
  vireo image "a green 7" -o seven.png
  vireo image "a red circle" -n 4 --seed 1 -o circle.png
  vireo image --image noisy.png --out clean.png --denoise 0.8

With --model ID, --help lists the settings of the model.
"""


def image(
    prompt: Annotated[str, typer.Argument(help="What the picture shows, if the model takes text.")] = "",
    source: Annotated[
        Path | None, typer.Option("--image", help="A picture to change.", exists=True, dir_okay=False)
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write: .png, .jpg or .webp. With -n: x-1.png and so on.")
    ] = Path("image.png"),
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of pictures.")] = 1,
    negative: Annotated[str | None, typer.Option(help="What the picture does not show.")] = None,
    size: Annotated[str | None, typer.Option(help="Width and height, as in 64x64.")] = None,
    model: ModelOption = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Makes pictures repeatable. With -n: the seed of the first one."),
    ] = None,
    latency_ms: LatencyOption = None,
    energy_j: EnergyOption = None,
    quality_floor: QualityOption = None,
    priority: PriorityOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Make pictures from a prompt, or change a picture.

    If the model makes them step by step, progress is shown on standard error. Ctrl-C cancels the job.
    """
    from serving.client.jobs import JobClient

    budget = given(latency_ms=latency_ms, energy_j=energy_j, quality_floor=quality_floor, priority=priority)
    with (
        asked_plainly(as_json=as_json, stopped="stopped; the pictures are cancelled"),
        JobClient(url, api_key, f"{_PATH}/jobs") as client,
    ):
        paths = _targets(out, count)
        chosen, values = client.choose("images", model, settings)
        is_job = source is None and client.model(chosen)["shape"] == "job"
        body = given(
            model=chosen,
            prompt=whole(prompt),
            negative_prompt=None if negative is None else whole(negative),
            n=count,
            size=size,
            seed=seed,
            output_format=_FORMATS[out.suffix.lower()],
            image=None if source is None else base64.b64encode(source.read_bytes()).decode(),
            vireo={**budget, "settings": values, "background": is_job},
        )
        if is_job:
            answer = client.followed(client.create(f"{_PATH}/generations", body), is_quiet=quiet)
            for number, path in enumerate(paths, 1):
                client.download(answer["id"], path, "image" if number == 1 else f"image-{number}")
            seeds = answer["seeds"]
        else:
            answer = client.ask("POST", f"{_PATH}/{'generations' if source is None else 'edits'}", body)
            for path, one in zip(paths, answer["data"], strict=True):
                path.write_bytes(base64.b64decode(one.pop("b64_json")))
            seeds = [one["seed"] for one in answer["data"] if "seed" in one]
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(plain(f"{_made(paths, seeds)}, {_report(answer['vireo'])}"))


def _made(paths: Sequence[Path], seeds: Sequence[int]) -> str:
    from PIL import Image

    with Image.open(paths[0]) as picture:
        size = f"{picture.width}x{picture.height}"
    named = f"{paths[0]} to {paths[-1].name}" if len(paths) > 1 else str(paths[0])
    drawn = (
        f", seed{'s' * (len(seeds) > 1)} {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))}" if seeds else ""
    )
    return f"{named}: {size}{drawn}"


def _report(report: Mapping[str, Any]) -> str:
    return (
        f"operating point {report['operating_point']}, {joules(report, '.4f')}, "
        f"queue {report['queue_ms']:.2f} ms, compute {report['compute_ms']:.2f} ms, "
        f"cache {report['cache']}" + (f", {words}" if (words := reduced(report)) else "")
    )


def _targets(out: Path, count: int) -> list[Path]:
    """The files to write. Raises: Failed: before anything is sent."""
    if out.suffix.lower() not in _FORMATS:
        raise Failed(f"{out.name} is not the name of a picture; end it in {', '.join(_FORMATS)}")
    if not out.parent.is_dir() or out.is_dir():
        raise Failed(f"--out is {out}, which cannot be written; name a file in a folder that is there")
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]
