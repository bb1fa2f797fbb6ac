"""``vireo moe status``: what the experts of a served model are sent, as a table that lives, and as a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from schedulers.experts.loads import balancedness
from serving.client.exits import Exit
from serving.client.options import DEFAULT_URL, JsonOption, KeyOption, ModelOption, UrlOption
from serving.client.told import Failed, asked_plainly, console, plain, show_table

if TYPE_CHECKING:
    from serving.client.http import Client

_EXAMPLES = """\b
Examples:
  vireo moe status
  vireo moe status --watch
  vireo moe status --png experts.png
"""
_BLOCKS = "▁▂▃▄▅▆▇█"
_PERIOD_S = 1.0


def register(app: typer.Typer) -> None:
    """Add ``moe status``."""
    moe = typer.Typer(no_args_is_help=True, help="Mixtures of experts: which experts work, and how evenly.")
    moe.callback()(lambda: None)  # else a group of one command is that command
    moe.command("status", epilog=_EXAMPLES)(status)
    app.add_typer(moe, name="moe", rich_help_panel="Models")


def status(
    model: ModelOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every second, until Ctrl-C.")] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a heat map of the experts.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Show how many tokens the experts of a model got in the last minute.

    Each line is a layer, with a bar for each expert. If the server has keys, this needs an admin's.
    """
    from serving.client.http import Client

    with asked_plainly(as_json=as_json), Client(url, api_key) as client:
        facts = _mixture(client, model)
        document = _asked(client, facts)
        if png is not None:
            _draw(document, png)
        if as_json:
            typer.echo(json.dumps(document, indent=2))
        elif watch:
            _watch(client, facts)
        else:
            for line in _head(facts, document):
                typer.echo(plain(line))
            show_table(_COLUMNS, _rows(document))


def _mixture(client: Client, model: str | None) -> dict[str, Any]:
    """Id and experts of the model that is named, or of the first that has any. Raises: Failed."""
    blocks = dict(client.models()) if model is None else {model: client.model(model)}
    for name, block in blocks.items():
        if "experts" in block:
            return {"id": name, **block["experts"]}
    what = "no served model has experts" if model is None else f"{model} has no experts"
    raise Failed(f"{what}; `vireo models list --url {client.url}` shows what is served", Exit.REFUSED)


def _asked(client: Client, facts: dict[str, Any]) -> dict[str, Any]:
    return client.ask("GET", f"/v1/models/{quote(facts['id'], safe='')}/experts")


def _watch(client: Client, facts: dict[str, Any]) -> None:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    with Live(console=console(), auto_refresh=False) as live:
        while True:
            document = _asked(client, facts)
            table = Table(*_COLUMNS, box=None, pad_edge=False, title_justify="left", title_style="")
            table.title = Text("\n".join(_head(facts, document)))
            for row in _rows(document):
                table.add_row(*row)
            live.update(table, refresh=True)
            time.sleep(_PERIOD_S)


# -- words -----------------------------------------------------------------------------------------------------------

_COLUMNS = ("layer", "tokens", "busiest", "its share", "balance", "experts")


def _head(facts: dict[str, Any], document: dict[str, Any]) -> list[str]:
    shared = f" and {facts['shared']} shared" if facts["shared"] else ""
    lines = [
        f"{facts['id']}: {facts['layers']} layers of {facts['experts']} experts{shared}, {facts['chosen']} a token; "
        f"{facts['active_parameters']:,} of {facts['parameters']:,} parameters active"
    ]
    if not document["slices"]:
        return [*lines, f"no slice ran in the last {document['window_s']:g} s"]
    phases = ", ".join(f"{each['phase']} {each['balancedness']:.2f}" for each in document["phases"])
    replicas = f"{document['replicas']} replica{'s' * (document['replicas'] != 1)}"
    lines.append(
        f"last {document['window_s']:g} s on {replicas}: {document['slices']} slices, "
        f"{document['distinct_experts']:.1f} distinct experts a layer; balance of phases: {phases}"
    )
    return [*lines, *map(_placement, document["placements"])]


def _placement(placed: dict[str, Any]) -> str:
    parts = ", ".join(f"{part:.0%}" for part in placed["rank_loads"])
    return (
        f"placement {placed['version']}: {placed['slots']} slots a layer on {placed['ranks']} ranks, which do {parts} "
        f"of the work; {placed['moves']} moves"
    )


def _rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    return [_row(number, loads) for number, loads in enumerate(_total(document))]


def _row(layer: int, loads: Sequence[int]) -> tuple[str, ...]:
    total, most = sum(loads), max(loads)
    if not total:
        return (str(layer), "0", "", "", "", "")
    bars = "".join(_BLOCKS[round((len(_BLOCKS) - 1) * load / most)] for load in loads)
    balance = balancedness([loads])
    return (str(layer), f"{total:,}", str(loads.index(most)), f"{most / total:.0%}", f"{balance:.2f}", bars)


def _total(document: dict[str, Any]) -> list[list[int]]:
    """Tokens by layer and expert, of all phases."""
    phases = [each["loads"] for each in document["phases"]]
    return [[sum(column) for column in zip(*layers, strict=True)] for layers in zip(*phases, strict=True)]


# -- picture ---------------------------------------------------------------------------------------------------------

_SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours of a share from nothing up to twice the mean and more."""
_CELL, _MARGIN, _LINE = 22, 56, 16


def _draw(document: dict[str, Any], path: Path) -> None:
    """Each phase as a map of layers and experts. Raises: Failed: nothing to draw, or no such file."""
    from PIL import Image, ImageDraw

    phases = document["phases"]
    if not phases:
        raise Failed(f"there is nothing to draw: no slice ran in the last {document['window_s']:g} s", Exit.FAILED)
    if path.suffix.lower() != ".png":
        raise Failed(f"--png is {path}; its name must end in .png")
    layers, experts = len(phases[0]["loads"]), len(phases[0]["loads"][0])
    width, height = _MARGIN + experts * _CELL, 3 * _LINE + layers * _CELL
    picture = Image.new("RGB", (max(320, len(phases) * width + _LINE), height + 2 * _LINE), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((_LINE // 2, 2), f"{document['id']}: tokens by layer and expert, last {document['window_s']:g} s", "black")
    for place, phase in enumerate(phases):
        left, top = place * width + _MARGIN, 3 * _LINE
        pen.text((left, _LINE + 4), f"{phase['phase']} steps, balance {phase['balancedness']:.2f}", "black")
        for layer, loads in enumerate(phase["loads"]):
            pen.text((left - _LINE - 4, top + layer * _CELL + 5), str(layer), "black", anchor="ra")
            mean = max(sum(loads), 1) / len(loads)
            for expert, load in enumerate(loads):
                corner = (left + expert * _CELL, top + layer * _CELL)
                cell = (*corner, corner[0] + _CELL - 2, corner[1] + _CELL - 2)
                pen.rectangle(cell, _colour(load / mean / 2))
        for expert in range(experts):
            pen.text((left + expert * _CELL + _CELL // 2, top + layers * _CELL + 2), str(expert), "black", anchor="ma")
    _legend(pen, height + _LINE + 2)
    try:
        picture.save(path, "PNG")
    except OSError as error:
        raise Failed(f"cannot write {path} ({error.strerror})") from None


def _legend(pen: Any, top: int) -> None:
    for step in range(100):
        pen.line((_LINE // 2 + step, top, _LINE // 2 + step, top + 8), _colour(step / 99))
    pen.text((_LINE // 2 + 108, top - 2), "0 to twice the mean of a layer", "black")


def _colour(share: float) -> tuple[int, ...]:
    place = min(max(share, 0.0), 1.0) * (len(_SCALE) - 1)
    first = min(int(place), len(_SCALE) - 2)
    rest = place - first
    pairs = zip(_SCALE[first], _SCALE[first + 1], strict=True)
    return tuple(round(low + rest * (high - low)) for low, high in pairs)
