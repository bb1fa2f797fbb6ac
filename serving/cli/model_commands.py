"""Commands about models: list, show, train, calibrate. Torch is imported only by those that need it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from models.contract import Family, Variant
from models.registry import families, find, known_ids
from serving.cli import video_model_facts
from serving.cli.chat_model_facts import facts_of, weights_of
from serving.cli.told import console, progress_bar, told_plainly

if TYPE_CHECKING:
    from models.training.dyn_perceiver.train import Progress as TrainingProgress

ModelId = Annotated[str, typer.Argument(help="Model id; 'vireo models list' names them.", metavar="MODEL")]


def register(app: typer.Typer) -> None:
    """Add ``models list``, ``models show``, ``train`` and ``calibrate`` to the command line."""
    models = typer.Typer(no_args_is_help=True, help="What models there are and what each one costs.")
    models.command("list")(list_models)
    models.command("show")(show_model)
    app.add_typer(models, name="models")
    app.command("train")(train)
    app.command("calibrate")(calibrate)


def list_models() -> None:
    """List the models that this version knows: those that classify, those that chat, those that make clips."""
    table = Table("id", "input", "classes", "exits", "weights", "what it is")
    for variant in (v for family in families().values() if "classify" in family.tasks for v in family.variants):
        side, io = str(variant.io.input_size), variant.io
        table.add_row(
            variant.id, f"{side}x{side}", str(io.num_classes), str(io.num_exits), _weights(variant), variant.summary
        )
    console.print(table)
    chat = Table("id", "context", "tile", "tiles", "a side", "tokens a tile", "weights", "what it is")
    for family, model in [(one, model) for one in families().values() if "chat" in one.tasks for model in one.variants]:
        io = model.io
        limits = (io.max_tiles, io.max_tiles_side, io.tokens_per_tile)
        weights = weights_of(family, model)
        tile = f"{io.tile_size}x{io.tile_size}"
        chat.add_row(model.id, str(io.max_model_len), tile, *map(str, limits), weights, model.summary)
    console.print(chat)
    video = Table("id", "clip", "frames", "samplers", "weights", "what it is")
    for made in [one for family in families().values() if "videos" in family.tasks for one in family.variants]:
        frames = ", ".join(map(str, made.io.frame_counts))
        samplers = ", ".join(made.io.samplers)
        size = f"{made.io.width}x{made.io.height}"
        video.add_row(made.id, size, frames, samplers, video_model_facts.weights_of(made), made.summary)
    console.print(video)


def show_model(
    model: ModelId,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder with the model's weights, if they are not the shipped ones.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the operating-point table, or a chat model's limits, as JSON.")
    ] = False,
) -> None:
    """Show a model: its operating points, what each one costs and how good it is; of a chat model its limits."""
    from models.operating_points import read_table

    with told_plainly():
        if model in known_ids("chat"):
            _show_chat(*find(model), checkpoint, as_json)
            return
        if model in known_ids("videos"):
            made = _video_variant(model, checkpoint)
            if as_json:
                typer.echo(video_model_facts.as_json(made))
                return
            console.print(f"[bold]{made.id}[/]  {made.summary}")
            for line in video_model_facts.lines_of(made):
                console.print(line, markup=False, soft_wrap=True)
            return
        variant = _shown_variant(model, checkpoint)
        if as_json:
            typer.echo(json.dumps(read_table(variant), indent=1))
            return
        console.print(f"[bold]{variant.id}[/]  {variant.summary}\nweights: {variant.weights or _weights(variant)}")
        if top1 := variant.published.get("top1"):
            console.print(f"published top-1 of its exits, %: {', '.join(map(str, top1))}")
        if variant.weights is not None:
            _print_points(variant)


def train(
    model: ModelId,
    out: Annotated[
        Path | None, typer.Option(help="Where weights and log go; default: beside the shipped ones, which it replaces.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, instead of the default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, order and disturbances.")] = 0,
) -> None:
    """Train a model that can be trained here, from data that installed packages ship.

    Takes about a quarter of an hour on one core. Interrupt it at will: the same command goes on where it stopped.
    Run 'vireo calibrate' afterwards; the old operating points belong to the old weights.
    """
    with told_plainly(), progress_bar() as progress:
        from models.training.dyn_perceiver import train as training
        from models.training.dyn_perceiver.card import write_card

        _, variant = find(model)
        directory = out or variant.weights or Path(variant.id)
        config = training.TrainConfig(model=model, seed=seed, steps=steps or training.TrainConfig.steps)
        task = progress.add_task("training", total=config.steps)
        log = training.train(config, directory, _show_training(progress, task))
        _drop_stale_table(directory)
        write_card(variant.with_weights(directory))
    for name, accuracy in log["test_accuracy"].items():
        console.print(f"{name:>6}: " + "  ".join(f"exit {k} {100 * a:.2f}%" for k, a in enumerate(accuracy, 1)))
    console.print(f"written to {directory}; next: vireo calibrate {model}" + (f" --checkpoint {out}" if out else ""))


def calibrate(
    model: ModelId,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder with the weights, if not the shipped ones.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled pictures, one folder per class in class order; only nano models bring their own."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads, as many as a replica will have.")] = 1,
    watts: Annotated[float, typer.Option(min=0.1, help="Power of one busy core or device, for the estimate.")] = 6.0,
) -> None:
    """Measure a model on this machine and write its operating points beside its weights.

    An operating point is a set of exit thresholds with its measured cost and its accuracy on pictures that the
    thresholds were not searched on. Those of a video model are made of its folder's evaluation
    (python -m models.training.vdit.evaluate FOLDER).
    """
    if model in known_ids("videos"):
        from serving.tasks.videos.calibrate import calibrate as calibrate_video

        with told_plainly():
            made = _video_variant(model, checkpoint)
            console.print(f"written to {calibrate_video(find(model)[0], made, watts)}", soft_wrap=True)
        return
    with told_plainly(), progress_bar() as progress:
        from models.training.dyn_perceiver.calibrate import CalibrationConfig, calibrate_model
        from models.training.dyn_perceiver.card import write_card

        _, variant = find(model, checkpoint)
        config = CalibrationConfig(device=device, num_threads=threads, watts=watts)
        calibrate_model(variant, config, data_dir=data, on_progress=_show_phases(progress))
        if variant.weights is not None and (variant.weights / "training_log.json").is_file():
            write_card(variant)
    _print_points(variant)


def _video_variant(model: str, checkpoint: Path | None) -> Variant:
    variant = find(model)[1]
    return variant if checkpoint is None else variant.with_weights(checkpoint)


def _show_chat(family: Family, variant: Variant, checkpoint: Path | None, as_json: bool) -> None:
    facts = facts_of(family, variant if checkpoint is None else variant.with_weights(checkpoint))
    if as_json:
        typer.echo(facts.as_json())
        return
    console.print(f"[bold]{facts.id}[/]  {facts.summary}")
    for line in facts.lines():
        console.print(line, soft_wrap=True)


def _shown_variant(model: str, checkpoint: Path | None) -> Variant:
    try:
        return find(model, checkpoint)[1]
    except ValueError as error:
        raise ValueError(f"{error}; chat models: {', '.join(known_ids('chat'))}") from None


def _weights(variant: Variant) -> str:
    return "included" if variant.weights is not None else "bring your own (vireo convert)"


def _print_points(variant: Variant) -> None:
    from models.operating_points import read_table

    content = read_table(variant)
    hardware = content["hardware"]
    table = Table("point", "FLOPs", "accuracy", "clean", "leaving at exits 1-4", "ms, batch of 16", "J per picture")
    for point in content["points"]:
        table.add_row(
            point["name"],
            f"{100 * point['flops_fraction']:.1f}%",
            f"{100 * point['accuracy']:.2f}%",
            f"{100 * point['accuracy_clean']:.2f}%",
            " / ".join(f"{100 * share:.0f}%" for share in point["exit_shares"]),
            f"{point['ms_by_batch']['16']:.2f}",
            f"{point['joules_per_sample']:.5f}",
        )
    console.print(table)
    console.print(
        f"measured on {hardware['cpu']}, {hardware['threads']} thread(s), {hardware['device']}; "
        f"joules: {content['energy']['source']} at {content['energy']['watts']:g} W"
    )


def _drop_stale_table(directory: Path) -> None:
    from models.operating_points import TABLE_FILE

    for name in (TABLE_FILE, "operating_points.png"):
        (directory / name).unlink(missing_ok=True)


def _show_training(progress: Progress, task: TaskID) -> Callable[[TrainingProgress], None]:
    def show(step: TrainingProgress) -> None:
        progress.update(task, completed=step.step, description=f"training, loss {step.loss:.3f}")
        if step.accuracy is not None:
            shown = "  ".join(f"{100 * a:.1f}%" for a in step.accuracy)
            progress.console.print(f"step {step.step}: clean accuracy of exits 1-4  {shown}")

    return show


def _show_phases(progress: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done)

    return show
