"""``vireo families``: what families there are, the card of one, and the skeleton of a new one. Free of torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.client.told import show_table, told_plainly

if TYPE_CHECKING:
    from models.contract import Family

_SKELETON = Path(__file__).parent / "skeleton"
_TASKS = ("classify", "images")
_OF_A_TASK = ("family.py", "network.py")
_EXAMPLES = """\b
Examples:
  vireo families
  vireo families --json
"""
_SHOW_EXAMPLES = """\b
Examples:
  vireo families show FAMILY
"""
_NEW_EXAMPLES = """\b
Examples:
  vireo families new night-owl
  vireo families new day-owl --task images --out day-owl
"""
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def register(app: typer.Typer) -> None:
    """Add ``families``, ``families show`` and ``families new``."""
    families = typer.Typer(
        invoke_without_command=True,
        epilog=_EXAMPLES,
        help="Model families: what is known, and how to write one.",
    )
    families.callback()(list_families)
    families.command("show", epilog=_SHOW_EXAMPLES)(show)
    families.command("new", epilog=_NEW_EXAMPLES)(new)
    app.add_typer(families, name="families", rich_help_panel="Models")


def list_families(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
) -> None:
    """List the families of this installation, those of other distributions included."""
    if context.invoked_subcommand is not None:
        return
    from models.registry import families

    with told_plainly():
        known = families()
    if as_json:
        typer.echo(json.dumps([_as_json(family) for family in known.values()], indent=1))
        return
    rows = []
    for family in known.values():
        models = [(variant.id, variant.source.licence) for variant in family.variants]
        models += [(f"{family.name}:NAME", "NAME's")] * (family.resolve is not None)
        rows += [(model, family.name, ", ".join(family.tasks), licence, family.shape) for model, licence in models]
    show_table(("model", "family", "tasks", "licence", "runs as"), rows, may_drop_last=True)


def _as_json(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "summary": family.summary,
        "tasks": family.tasks,
        "shape": family.shape,
        "open": family.resolve is not None,
        "examples": family.examples,
        "settings": [{"name": knob.name, "scope": knob.scope, **knob.json_schema()} for knob in family.knobs],
        "variants": [
            {
                "id": variant.id,
                "summary": variant.summary,
                "licence": variant.source.licence,
                "paper": variant.source.paper,
                "weights": None if variant.weights is None else str(variant.weights),
            }
            for variant in family.variants
        ],
    }


def show(name: Annotated[str, typer.Argument(metavar="FAMILY", help="As `vireo families` lists it.")]) -> None:
    """Print the card of a family: its settings and its models."""
    from models.card import family_card
    from models.registry import families

    with told_plainly():
        known = families()
        if name not in known:
            raise ValueError(f"unknown family {name!r}; known families: {', '.join(known)}")
    typer.echo(family_card(known[name]))


def new(
    name: Annotated[str, typer.Argument(help="Name of the family: small letters, digits and hyphens.")],
    task: Annotated[str, typer.Option(help=f"What it is for: {', '.join(_TASKS)}.")] = "classify",
    out: Annotated[Path | None, typer.Option(help="Folder to write; NAME in the current one when absent.")] = None,
) -> None:
    """Write a distribution with one family that works: card, network, and a test that runs Vireo's checks on it."""
    with told_plainly():
        written = write_skeleton(name, task, out or Path(name))
    for path in written:
        typer.echo(path)
    typer.echo(f"next: pip install -e {written[0].parent} && pytest {written[0].parent}", err=True)


def write_skeleton(name: str, task: str, folder: Path) -> list[Path]:
    """Write the files; returns their paths.

    Raises: ValueError: a name that cannot be one, an unknown task, or a folder that is there and not empty.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a family; use small letters, digits and single hyphens, like my-model")
    if task not in _TASKS:
        raise ValueError(f"there is no skeleton for task {task!r}; there is one for {', '.join(_TASKS)}")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give another folder with --out")
    package = name.replace("-", "_")
    places = {
        "pyproject.toml": ".",
        "__init__.py": package,
        "family.py": package,
        "network.py": package,
        "README.md": package,
        "test_family.py": "tests",
    }
    written = []
    for file, place in places.items():
        target = folder / place / file
        target.parent.mkdir(parents=True, exist_ok=True)
        folder_of = _SKELETON / task if file in _OF_A_TASK else _SKELETON
        text = Template((folder_of / f"{file}.tmpl").read_text(encoding="utf-8"))
        target.write_text(text.substitute(name=name, package=package), encoding="utf-8")
        written.append(target)
    return written
