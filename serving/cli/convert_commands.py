"""``vireo convert``: published weights into the folders that Vireo serves. Torch is imported by the commands only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.registry import families, find
from serving.client.told import console, progress_bar, told_plainly


def register(app: typer.Typer) -> None:
    """Add ``convert`` to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Bring published weights into the form that Vireo serves.")
    group.command("dyn-perceiver")(convert_dyn_perceiver)
    group.command("texthawk2")(convert_texthawk2)
    app.add_typer(group, name="convert")


def convert_dyn_perceiver(
    source: Annotated[Path, typer.Argument(help="Published checkpoint (.pth).", metavar="SRC.pth")],
    model: Annotated[str, typer.Option(help="Model id that it belongs to.")],
    out: Annotated[Path, typer.Option(help="Folder for model.safetensors.")],
    ema: Annotated[bool, typer.Option(help="Take the averaged weights where the file has both.")] = True,
) -> None:
    """Convert a published checkpoint to safetensors.

    The file is read without running code that it may contain, and every name and shape is checked.
    """
    with told_plainly():
        family, variant = find(model)
        path, num_tensors = family.part("convert")(variant, source, out, prefer_ema=ema)
    console.print(f"{num_tensors} tensors written to {path}")


def convert_texthawk2(
    vision: Annotated[Path, typer.Option(help="Folder of a SigLIP model in Hugging Face's form.")],
    language: Annotated[Path, typer.Option(help="Folder of a Qwen2 model in Hugging Face's form.")],
    out: Annotated[Path, typer.Option(help="Folder for the assembled model.")],
    seed: Annotated[int, typer.Option(help="Seed of the connector's fresh weights.")] = 0,
) -> None:
    """Assemble a TextHawk2 model from a published SigLIP and a published Qwen2.

    TextHawk2's own weights were never published: the connector between the two starts fresh and has to be trained.
    """
    with told_plainly(), progress_bar() as progress:
        task = progress.add_task("copying tensors", total=None)
        config = families()["texthawk2"].part("convert")(
            vision,
            language,
            out,
            seed=seed,
            on_tensor=lambda done, total: progress.update(task, completed=done, total=total),
        )
    levels = ", ".join(map(str, config.vision_levels))
    console.print(f"written to {out}: reads layers {levels} of the tower, {config.tokens_per_tile} tokens a tile")
    console.print("the connector's weights are fresh: train it before you serve this model")
