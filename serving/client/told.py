"""How commands speak: results to standard output, all else to standard error, mistakes in one line.

What is not a terminal gets plain text of any width. rich is imported by what draws, and only then.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from serving.client.exits import Exit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from models.contract import OnProgress

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ANY_WIDTH = 100_000
_GAP = 2
_LEAST_LAST = 28
"""Columns below which text that is folded into them cannot be read any more."""


def plain(text: str) -> str:
    """Return text that cannot steer a terminal: what a model or a server says may come from an image of a stranger."""
    return _CONTROL.sub("\ufffd", text)


def whole(text: str) -> str:
    """Return text that JSON can carry: bytes of an argument that are no UTF-8 become a replacement character."""
    return _SURROGATE.sub("\ufffd", text)


class Failed(Exception):
    """No answer. The message is one line for the user; ``document`` is the server's error as it came, if it did."""

    def __init__(self, line: str, exit_code: Exit = Exit.USAGE, document: Mapping[str, Any] | None = None) -> None:
        super().__init__(line)
        self.line = plain(line).replace("\n", " ")
        self.exit_code = exit_code
        self.document = document

    @property
    def is_servers_fault(self) -> bool:
        """Whether the same question may be answered later."""
        return self.exit_code in (Exit.FAILED, Exit.BUSY)


def reduced(report: Mapping[str, Any]) -> str:
    """What a report says was reduced, by how much and why; nothing where nothing was."""
    words = ", ".join(report.get("degraded") or ())
    if (lowered := report.get("degradation")) is None:
        return f"degraded: {words}" if words else ""
    before, after = lowered["quality_before"], lowered["quality_after"]
    quality = f"quality {before:.3f} to {after:.3f}, " if before is not None and after is not None else ""
    joules = f"{lowered['energy_j_before']:.3g} to {lowered['energy_j_after']:.3g} J"
    why = " and ".join(lowered["reasons"])
    return f"degraded: {words} ({quality}{joules} as predicted, because of {why}; best point {lowered['from_point']})"


# -- how a command ends ----------------------------------------------------------------------------------------------


def leave(line: str, exit_code: Exit) -> NoReturn:
    """End the command with a line on standard error."""
    typer.echo(f"vireo: {line}", err=True)
    raise typer.Exit(exit_code) from None


@contextmanager
def asked_plainly(*, as_json: bool = False, stopped: str = "stopped") -> Iterator[None]:
    """What goes wrong while a system is asked ends in one line (with ``as_json``, in the server's error) and an exit
    code. ``stopped`` is said after Ctrl-C."""
    try:
        yield
    except Failed as error:
        if as_json and error.document is not None:
            typer.echo(json.dumps(error.document, indent=2))
            raise typer.Exit(error.exit_code) from None
        leave(error.line, error.exit_code)
    except KeyboardInterrupt:
        leave(stopped, Exit.INTERRUPTED)


@contextmanager
def told_plainly(*, stopped: str = "stopped") -> Iterator[None]:
    """Mistakes of the user, which the work calls ``ValueError``, end in one line. ``stopped`` is said after Ctrl-C."""
    try:
        yield
    except ValueError as error:
        leave(str(error), Exit.USAGE)
    except KeyboardInterrupt:
        leave(stopped, Exit.INTERRUPTED)


# -- what a command shows --------------------------------------------------------------------------------------------


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return where tables and bars are drawn. COLUMNS counts even for a file, which has any width otherwise."""
    from rich.console import Console

    found = Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
    if not found.is_terminal:
        found.width = shutil.get_terminal_size((_ANY_WIDTH, 24)).columns
    return found


def show_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", may_drop_last: bool = False
) -> None:
    """Print rows in columns, never cut. What is too wide for the terminal is turned by its diagonal, or else printed
    row by row; ``may_drop_last`` leaves out a last column of mere words instead."""
    out = console()
    cells = [[plain(cell) for cell in row] for row in rows]
    if title:
        out.print(title, style="bold")
    if may_drop_last and _width([head, *cells]) > out.width and _width_but_last([head, *cells]) + 40 > out.width:
        head, cells = head[:-1], [row[:-1] for row in cells]
    if _width_but_last([head, *cells]) + _LEAST_LAST > out.width < _width([head, *cells]):
        turned = [list(column) for column in zip(head, *cells, strict=True)]
        if _width(turned) > out.width:
            _print_rows(out, head, cells)
            return
        head, cells = turned[0], turned[1:]
    _print_grid(out, head, cells)


def _print_grid(out: Console, head: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.table import Column, Table

    columns = [Column(name, no_wrap=place < len(head) - 1, overflow="fold") for place, name in enumerate(head)]
    grid = Table(*columns, box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=any(head))
    for row in cells:
        grid.add_row(*row)
    with out.capture() as drawn:
        out.print(grid)
    for line in drawn.get().splitlines():
        typer.echo(line.rstrip())


def _print_rows(out: Console, head: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    for row in cells:
        _print_grid(out, ("", ""), list(zip(head, row, strict=True)))
        typer.echo()


def _width(lines: Sequence[Sequence[str]]) -> int:
    from rich.cells import cell_len

    return sum(max(map(cell_len, column)) + _GAP for column in zip(*lines, strict=True)) - _GAP


def _width_but_last(lines: Sequence[Sequence[str]]) -> int:
    return _width([[*line[:-1], ""] for line in lines])


def progress_bar(*, quiet: bool = False) -> Progress:
    """A bar with what is being done, how much of it is, and when it will be."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=quiet,
    )


def phases(progress: Progress) -> OnProgress:
    """Show each thing that is told of as a bar of its own."""
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done)

    return show


def joules(report: Mapping[str, Any], spec: str) -> str:
    """What a ``vireo`` block says of energy, in a format such as ``.4f``."""
    known = report.get("energy_j")
    return f"{'no reading' if known is None else f'{known:{spec}} J'} ({report['energy_source']})"
