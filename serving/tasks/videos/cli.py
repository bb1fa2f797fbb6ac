"""``vireo video [PROMPT] [--image FILE]``: a clip from words or a picture, with its progress while it is made."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.client.options import (
    ASKING,
    DEFAULT_URL,
    AskingCommand,
    EnergyOption,
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

if TYPE_CHECKING:
    from serving.client.jobs import JobClient

_PATH = "/v1/videos"
_SUFFIXES = {".mp4": "mp4", ".gif": "gif"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=AskingCommand, rich_help_panel=ASKING, epilog=_EXAMPLES)(video)


_EXAMPLES = """\b
Examples:
  vireo video "a red circle moves left" -o clip.mp4
  vireo video "a blue square grows" --gif --steps 4 --latency-ms 20000
  vireo video --image first.png -o clip.mp4

With --model ID, --help lists the settings of the model.
"""


def video(
    prompt: Annotated[str, typer.Argument(help="What the clip shows, if the model takes text.")] = "",
    image: Annotated[
        Path | None, typer.Option(help="The picture that the clip begins with.", exists=True, dir_okay=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write, .mp4 or .gif; default: video.mp4.")
    ] = None,
    gif: Annotated[bool, typer.Option("--gif", help="An animated GIF instead of MP4.")] = False,
    model: ModelOption = None,
    negative: Annotated[str | None, typer.Option(help="What the clip does not show.")] = None,
    size: Annotated[str | None, typer.Option(help="Width and height, as in 64x64.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Length in frames.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length in seconds, or the nearest possible.")] = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Frames per second of the file.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How much the prompt counts; 1 is no guidance.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the clip repeatable.")] = None,
    latency_ms: LatencyOption = None,
    energy_j: EnergyOption = None,
    quality_floor: QualityOption = None,
    priority: PriorityOption = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the finished job as the server sent it.")] = False,
    quiet: QuietOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Make a clip and save it.

    Its progress is shown on standard error. Ctrl-C cancels the job.
    """
    from serving.client.jobs import JobClient

    with asked_plainly(as_json=as_json, stopped="stopped; the job is cancelled"):
        path, output_format = _target(output, gif)
        budget: dict[str, Any] = given(
            latency_ms=latency_ms, energy_j=energy_j, quality_floor=quality_floor, priority=priority
        )
        body = given(
            prompt=whole(prompt) or None,
            input_reference=None if image is None else _data_url(image),
            output_format=output_format,
            negative_prompt=None if negative is None else whole(negative),
            size=size,
            num_frames=frames,
            seconds=seconds,
            fps=fps,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed,
        )
        with JobClient(url, api_key, _PATH) as client:
            chosen, values = client.choose("videos", model or _fitting(client, image), settings)
            budget["settings"] = values
            job = client.create(_PATH, {"model": chosen, **body, "vireo": budget})
            job = client.followed(job, is_quiet=quiet)
            client.download(job["id"], path)
            _report(job, path, as_json)


def _data_url(image: Path) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(image.read_bytes()).decode()}"


def _fitting(client: JobClient, image: Path | None) -> str | None:
    """The first model that takes a picture, if there is one; without one, the first that needs none."""
    videos = ((model, block["io"]) for model, block in client.models() if "videos" in block["tasks"])
    return next((model for model, io in videos if _fits(io, has_picture=image is not None)), None)


def _fits(io: dict[str, Any], *, has_picture: bool) -> bool:
    takes = "image" in io["inputs"]
    return takes if has_picture else not takes or "image" in io.get("optional_inputs", ())


def _target(output: Path | None, gif: bool) -> tuple[Path, str]:
    """Return the file to write and its format. Raises: Failed: before anything is sent."""
    path = output or Path("video.gif" if gif else "video.mp4")
    wanted = _SUFFIXES.get(path.suffix.lower())
    if wanted is None:
        raise Failed(f"--out is {path}; its name must end in .mp4 or .gif")
    if gif and wanted != "gif":
        raise Failed(f"--gif and --out {path} differ; name a .gif, or leave out --gif")
    if not path.parent.is_dir() or path.is_dir():
        raise Failed(f"--out is {path}, which cannot be written; name a file in a folder that is there")
    return path, wanted


def _report(job: dict[str, Any], path: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(job, indent=2))
        return
    block = job["vireo"]
    settings = block["settings"]
    took = [f"{block['num_steps']} steps", f"seed {settings['seed']}", str(block["operating_point"])]
    if job.get("inference_time_s") is not None:
        took.append(f"{job['inference_time_s']:.1f} s")
    if "energy_j" in block:
        took.append(joules(block, ".1f"))
    if words := reduced(block):
        took.append(words)
    typer.echo(plain(f"{path}: {job['size']}, {settings['num_frames']} frames, {job['seconds']} s; {', '.join(took)}"))
