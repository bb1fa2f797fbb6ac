"""Commands about models: list, show, train, calibrate. Torch is imported only by those that need it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from models.contract import LazyRef
from serving.client.options import KeyOption, LicenceOption, QuietOption, model_ids
from serving.client.told import phases, progress_bar, show_table, told_plainly

if TYPE_CHECKING:
    from models.contract import Family, Variant

_PANEL = "Models"
_LIST_EXAMPLES = """\b
Examples:
  vireo models list
  vireo models list --url HOST:8000 --key @key.txt
  vireo models list --json | jq -r '.[] | select(.served_at) | .id'
"""
_SHOW_EXAMPLES = """\b
Examples:
  vireo models show ID
  vireo models show NAME=FOLDER
  vireo models show FAMILY:NAME=FOLDER --json
"""
_TRAIN_EXAMPLES = """\b
Examples:
  vireo train ID --out my-weights
"""
_CALIBRATE_EXAMPLES = """\b
Examples:
  vireo calibrate ID
  vireo calibrate NAME=FOLDER --data PICTURES --accept-licence --resume
  vireo calibrate NAME=FOLDER --device cuda --size 480x320 --frames 17
"""

ModelId = Annotated[
    str,
    typer.Argument(help="Model id; 'vireo models list' shows them.", metavar="MODEL", autocompletion=model_ids),
]
ModelOrFolder = Annotated[
    str,
    typer.Argument(
        help="Model id, with the folder of its weights if they are not the shipped ones; or any name, and a folder.",
        metavar="ID[=FOLDER]",
        autocompletion=model_ids,
    ),
]
_QUIET_LOAD = 0.5
_CALIBRATE = LazyRef("models.training.calibration:calibrate")
_ASKED = LazyRef("models.training.requests:Asked")


def register(app: typer.Typer) -> None:
    """Add ``models list``, ``models show``, ``train`` and ``calibrate`` to the command line."""
    models = typer.Typer(no_args_is_help=True, help="Which models exist, which are served, and what they cost.")
    models.command("list", epilog=_LIST_EXAMPLES)(list_models)
    models.command("show", epilog=_SHOW_EXAMPLES)(show_model)
    app.add_typer(models, name="models", rich_help_panel=_PANEL)
    app.command("train", rich_help_panel=_PANEL, epilog=_TRAIN_EXAMPLES)(train)
    app.command("calibrate", rich_help_panel=_PANEL, epilog=_CALIBRATE_EXAMPLES)(calibrate)


def list_models(
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="VIREO_URL",
            help="The system whose served models to show; default: every system on this machine.",
        ),
    ] = None,
    api_key: KeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> None:
    """List the models that are known here, and those that are served.

    An open family has more models than can be listed; they are called family:NAME. The last column, what a model is,
    needs a wide terminal.
    """
    from models.registry import families

    served = _served_here() if url is None else _served_at(url, api_key)
    rows: list[dict[str, Any]] = []
    with told_plainly():
        for family in families().values():
            rows += [_known(family, variant) for variant in family.variants]
            if family.resolve is not None:
                rows.append(_open(family))
    known = {row["id"] for row in rows}
    rows += [
        {"id": model, "tasks": tasks, "weights": "served", "summary": ""}
        for model, (_, tasks) in served.items()
        if model not in known
    ]
    for row in rows:
        row["served_at"] = served[row["id"]][0] if row["id"] in served else None
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    cells = [
        (
            row["id"],
            row["tasks"][0],
            row["weights"].partition(" (")[0].partition(":")[0],
            (row["served_at"] or "").partition("://")[2],
            row["summary"],
        )
        for row in rows
    ]
    show_table(("model", "for", "weights", "served at", "what it is"), cells, may_drop_last=True)


def _known(family: Family, variant: Variant) -> dict[str, Any]:
    from serving.cli.model_facts import weights_of

    return {
        "id": variant.id,
        "family": family.name,
        "tasks": list(family.tasks),
        "weights": weights_of(family, variant),
        "licence": variant.source.licence,
        "summary": variant.summary,
    }


def _open(family: Family) -> dict[str, Any]:
    weights = "bring your own"
    name = f"{family.name}:NAME"
    return {
        "id": name,
        "family": family.name,
        "tasks": list(family.tasks),
        "weights": weights,
        "licence": None,
        "summary": family.summary,
    }


def _served_here() -> dict[str, tuple[str, list[str]]]:
    """Where each model is served on this machine, and for what."""
    from serving.cli.run_state import started

    return {
        model: (state.http_url, [task for task, served in state.tasks.items() if model in served])
        for state in started()
        if state.is_running()
        for model in state.models
    }


def _served_at(url: str, api_key: str | None) -> dict[str, tuple[str, list[str]]]:
    """Raises: Failed."""
    from serving.client.http import Client

    with Client(url, api_key) as client:
        return {model: (client.url, block["tasks"]) for model, block in client.models()}


def show_model(
    model: ModelOrFolder,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it as JSON; for a classifier, its operating-point table.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw its operating points there: quality against cost.")
    ] = None,
) -> None:
    """Show a model: where it comes from, its limits and settings, what its operating points cost and give.

    While it is served on this machine, also what its work was predicted to take, and took.
    """
    import msgspec

    from models.operating_points import read_table
    from serving.cli.live_costs import lines_of as live_lines
    from serving.cli.model_facts import facts_of, in_words, lines_of
    from serving.config import find_named

    with told_plainly():
        family, variant = find_named(model)
        if as_json:
            is_table = "classify" in family.tasks and _has_table(variant)
            content = read_table(variant) if is_table else facts_of(family, variant)
            typer.echo(msgspec.json.format(msgspec.json.encode(content), indent=1).decode())
            return
        lines = lines_of(family, variant)
        name = model.partition("=")[0]
        title = f"{variant.id} " if name == variant.id else f"{name} is {variant.id}:"
        for line in (f"{title} {variant.summary} ({in_words(variant.io)})", *lines):
            typer.echo(line)
        if _has_table(variant):
            _print_points(family, variant)
        for line in live_lines({name, variant.id}):
            typer.echo(line)
        if plot is not None:
            _draw_points(family, variant, plot)


def train(
    model: ModelId,
    out: Annotated[
        Path | None, typer.Option(help="Where weights and log go; default: beside the shipped ones, which it replaces.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, instead of the default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and disturbances.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Train a model from data that installed packages ship.

    Takes a quarter of an hour or so on one core. Interrupt it at will: the same command goes on where it stopped.
    Run 'vireo calibrate' afterwards if the model has operating points; the old ones belong to the old weights.
    """
    from models.registry import find

    stopped = "stopped; the same command goes on from here"
    with told_plainly(stopped=stopped), progress_bar(quiet=quiet) as progress:
        family, variant = find(model)
        if "train" not in family.parts:
            raise ValueError(f"{model} is not trained by this command; see the model card of {family.name}")
        directory = out or variant.weights or Path(variant.id)
        lines = family.part("train")(variant, directory, steps=steps, seed=seed, on_progress=phases(progress))
    for line in lines:
        typer.echo(line)
    has_points = any(knob.is_axis for knob in family.knobs)
    chosen = f"{model}={out}" if out else model
    typer.echo(f"written to {directory}" + (f"; next: vireo calibrate {chosen}" if has_points else ""))


def calibrate(
    model: ModelOrFolder,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures: labelled, one folder per class in class order, or of any kind for a model that makes "
            "pictures of them; only nano models bring their own."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads, as many as a replica will have.")] = 1,
    watts: Annotated[float, typer.Option(min=0.1, help="Power of one busy core or device, for the estimate.")] = 6.0,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Of pictures or clips that take steps; default: the usual size.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of clips; default: the lengths that the model lists.")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Of what takes steps and has no judge; default 8. More narrow the bounds.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Most requests that are run together; default 4. Fewer take less memory.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Where the points are drawn; default: operating_points.png beside them."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was interrupted.")] = False,
    accept_licence: LicenceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a model here and write its operating points.

    They are written beside its weights.
    An operating point is one choice of the settings that trade cost for quality, exit thresholds for instance, with
    its measured cost and its quality on data that were not searched on. Settings are measured one at a time, then in
    pairs near the front. A chat's are the tiles of a picture and the cap on its answer. Pictures and clips are judged
    as their family says, or else by how well they agree with those of the dearest point for the same requests and
    seeds. That takes several clips a point: with a large model, bound them by --size, --frames and --requests.

    The points are drawn as well, quality against joules and seconds; grey ones are never picked.

    Each measurement is kept in a file beside the weights until the table is written: --resume goes on from there.
    """
    from models.contract import check_licence
    from serving.config import find_named

    stopped = "stopped; what was measured is kept, and --resume goes on from there"
    with told_plainly(stopped=stopped), progress_bar(quiet=quiet) as progress:
        family, variant = find_named(model)
        if variant.weights is not None:
            check_licence(variant, is_accepted=accept_licence)
        path = _CALIBRATE.load()(
            family,
            variant,
            is_resumed=resume,
            data_dir=data,
            device=device,
            num_threads=threads,
            watts=watts,
            on_progress=phases(progress),
            **_asked(family, size, frames=frames, requests=requests, max_batch=max_batch),
        )
        if "card" in family.parts and variant.is_nano and (path.parent / "training_log.json").is_file():
            family.part("card")(variant)
    _print_points(family, variant)
    typer.echo(f"written to {path}")
    try:
        _draw_points(family, variant, plot or path.with_suffix(".png"))
    except ValueError as error:  # the table is there all the same
        typer.echo(f"not drawn: {error}")


def _asked(family: Family, size: str | None, **given: int | None) -> dict[str, Any]:
    """Options of a calibration by whole requests. Raises: ValueError: this family is not calibrated so."""
    words = [f"--{name.replace('_', '-')}" for name, value in {"size": size, **given}.items() if value is not None]
    if not words:
        return {}
    if family.shape != "job":
        raise ValueError(f"{', '.join(words)}: for models that take several steps, and {family.name} does not")
    width, _, height = (size or "").partition("x")
    if size is not None and not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size {size!r} is no size; write WIDTHxHEIGHT, as 480x320")
    counts = {"num_frames": given["frames"], "count": given["requests"]}
    asked = _ASKED.load()(
        size=(int(width), int(height)) if size else None,
        **{name: count for name, count in counts.items() if count is not None},
    )
    return {"asked": asked, "max_batch": given["max_batch"] or 4}


def _has_table(variant: Variant) -> bool:
    from models.operating_points import TABLE_FILE

    return variant.weights is not None and (variant.weights / TABLE_FILE).is_file()


def _print_points(family: Family, variant: Variant) -> None:
    from models.operating_points import read_table
    from serving.operating_points import priced_points

    content = read_table(variant)
    points, rows = priced_points(family, variant, content), []
    numbers = {one.name: str(one.number) for one in points}
    for one in points:
        shares = [] if one.quality is None else [one.quality.value, one.quality.low]
        quality, cost = [f"{share:.2%}" for share in shares] or ["", ""], ["learnt"] * 3
        if one.busy_s:
            cost = [f"{1e3 * one.latency_s:.2f}", f"{1e3 * one.busy_s:.3f}", f"{one.energy_j:.5f}"]
        worse = "" if one.dominated_by is None else numbers[one.dominated_by]
        rows.append((numbers[one.name], one.name, *quality, *cost, worse))
    show_table(("", "point", "quality", "at least", "ms alone", "ms of a full batch", "J", "worse than"), rows)
    if any(one.dominated_by for one in points):
        typer.echo("a point that is worse than another one is picked only where a request's own settings ask for it")
    hardware, energy = content.hardware, content.energy
    typer.echo(
        f"measured on {hardware.cpu}, {hardware.threads} thread(s), {hardware.device}; "
        f"joules: {energy.source} at {energy.watts:g} W"
        + (f"; other work was running (load {hardware.load:g})" if (hardware.load or 0.0) > _QUIET_LOAD else "")
    )
    if (held_out := content.prediction) is not None:
        typer.echo(
            f"seconds of {held_out.runs} held-out runs are predicted within {held_out.median_error:.1%} (median), "
            f"{held_out.p95_error:.1%} (95%)"
        )


def _draw_points(family: Family, variant: Variant, path: Path) -> None:
    """Raises: ValueError: no table, or nothing in it to draw."""
    from models.operating_points import read_table
    from serving.cli.pareto import draw_points
    from serving.operating_points import priced_points

    table = read_table(variant)
    draw_points(variant.id, table.metric, priced_points(family, variant, table), path)
    typer.echo(f"drawn in {path}")
