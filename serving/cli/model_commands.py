"""Commands about models: list, show, train, calibrate. Torch is imported only by those that need it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from models.contract import Family, LazyRef, Variant, check_licence
from models.registry import families, find
from serving.client.options import LicenceOption
from serving.client.told import console, phases, progress_bar, told_plainly

ModelId = Annotated[str, typer.Argument(help="Model id; 'vireo models list' names them.", metavar="MODEL")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Folder with the model's weights, if they are not the shipped ones.")
]


_QUIET_LOAD = 0.5
_CALIBRATE = LazyRef("models.training.calibration:calibrate")


def register(app: typer.Typer) -> None:
    """Add ``models list``, ``models show``, ``train`` and ``calibrate`` to the command line."""
    models = typer.Typer(no_args_is_help=True, help="What models there are and what each one costs.")
    models.command("list")(list_models)
    models.command("show")(show_model)
    app.add_typer(models, name="models")
    app.command("train")(train)
    app.command("calibrate")(calibrate)


def list_models() -> None:
    """List the models that this installation knows. An open family has more than can be listed: family:NAME."""
    from serving.cli.model_facts import weights_of

    columns = (Column(name, no_wrap=True) for name in ("id", "for", "weights"))
    table = Table(*columns, "what it is", box=None, pad_edge=False)
    with told_plainly():
        for family in families().values():
            for variant in family.variants:
                weights = weights_of(family, variant).partition(" (")[0].partition(":")[0]
                table.add_row(variant.id, family.tasks[0], weights, variant.summary)
            if family.resolve is not None:
                table.add_row(f"{family.name}:NAME", family.tasks[0], "bring your own", family.summary)
    console.print(table)
    console.print("vireo models show ID says more, for instance how to bring weights", style="dim")


def show_model(
    model: ModelId,
    checkpoint: Checkpoint = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it as JSON: of a classifier its operating-point table.")
    ] = False,
) -> None:
    """Show a model: where it comes from, its limits and settings, what its operating points cost and give."""
    import msgspec

    from models.operating_points import read_table
    from serving.cli.model_facts import facts_of, in_words, lines_of

    with told_plainly():
        family, variant = find(model, checkpoint)
        if as_json:
            is_table = "classify" in family.tasks and _has_table(variant)
            content = read_table(variant) if is_table else facts_of(family, variant)
            typer.echo(msgspec.json.format(msgspec.json.encode(content), indent=1).decode())
            return
        lines = lines_of(family, variant)
        console.print(f"[bold]{variant.id}[/]  {variant.summary} ({in_words(variant.io)})")
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)
        if _has_table(variant):
            _print_points(family, variant)


def train(
    model: ModelId,
    out: Annotated[
        Path | None, typer.Option(help="Where weights and log go; default: beside the shipped ones, which it replaces.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, instead of the default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and disturbances.")] = 0,
) -> None:
    """Train a model that can be trained here, from data that installed packages ship.

    Takes a quarter of an hour or so on one core. Interrupt it at will: the same command goes on where it stopped.
    Run 'vireo calibrate' afterwards if the model has operating points; the old ones belong to the old weights.
    """
    with told_plainly(), progress_bar() as progress:
        family, variant = find(model)
        if "train" not in family.parts:
            raise ValueError(f"{model} is not trained by this command; see the model card of {family.name}")
        directory = out or variant.weights or Path(variant.id)
        lines = family.part("train")(variant, directory, steps=steps, seed=seed, on_progress=phases(progress))
    for line in lines:
        console.print(line)
    has_points = any(knob.is_axis for knob in family.knobs)
    chosen = f"{model}={out}" if out else model
    console.print(f"written to {directory}" + (f"; next: vireo calibrate {chosen}" if has_points else ""))


def calibrate(
    model: Annotated[
        str,
        typer.Argument(help="Model id, and the folder of its weights if not the shipped one.", metavar="ID[=FOLDER]"),
    ],
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was interrupted.")] = False,
    accept_licence: LicenceOption = False,
) -> None:
    """Measure a model on this machine and write its operating points beside its weights.

    An operating point is one choice of the settings that trade cost for quality, exit thresholds for instance, with
    its measured cost and its quality on data that were not searched on. Settings are measured one at a time, then in
    pairs near the front. A chat's are the tiles of a picture and the cap on its answer. Pictures that a model makes are
    judged as its family says, or else by how well they agree with those of the dearest point; clips as they were when
    the checkpoint was evaluated.

    Each measurement is kept in a file beside the weights until the table is written: --resume goes on from there.
    """
    with told_plainly(), progress_bar() as progress:
        name, _, folder = model.partition("=")
        family, variant = find(name, Path(folder) if folder else None)
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
        )
        if "card" in family.parts and variant.is_nano and (path.parent / "training_log.json").is_file():
            family.part("card")(variant)
    _print_points(family, variant)
    console.print(f"written to {path}", soft_wrap=True)


def _has_table(variant: Variant) -> bool:
    from models.operating_points import TABLE_FILE

    return variant.weights is not None and (variant.weights / TABLE_FILE).is_file()


def _print_points(family: Family, variant: Variant) -> None:
    from models.operating_points import read_table
    from serving.operating_points import planned_points, usual_work

    content, work = read_table(variant), usual_work(family, variant)
    table = Table(Column("point", no_wrap=True), "quality", "at least", "ms alone", "ms of a full batch", "J")
    for point in planned_points(content):
        row = content.points[point.name]
        units = work(point.settings) if point.cost.busy_s else {}
        busy_s = point.cost.busy(units)
        table.add_row(
            point.name,
            "" if row.quality is None else f"{100 * row.quality.value:.2f}%",
            "" if row.quality is None else f"{100 * row.quality.low:.2f}%",
            *(
                [f"{1e3 * point.cost.latency(units):.2f}", f"{1e3 * busy_s:.3f}", f"{busy_s * point.cost.watts:.5f}"]
                if units
                else ["learnt"] * 3
            ),
        )
    console.print(table)
    hardware, energy = content.hardware, content.energy
    console.print(
        f"measured on {hardware.cpu}, {hardware.threads} thread(s), {hardware.device}; "
        f"joules: {energy.source} at {energy.watts:g} W"
        + (f"; other work was running (load {hardware.load:g})" if (hardware.load or 0.0) > _QUIET_LOAD else "")
    )
