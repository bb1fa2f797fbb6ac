"""How commands speak: one console, one look of a progress bar, mistakes in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from models.contract import OnProgress

SERVER_FAULT, CLIENT_FAULT = 1, 2
"""Exit codes: the same command may succeed later; the command, or what it asks, must change."""
INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C has ended."""

console = Console()
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def plain(text: str) -> str:
    """Return text that cannot steer a terminal: what a model or a server says may come from an image of a stranger."""
    return _CONTROL.sub("\ufffd", text)


def whole(text: str) -> str:
    """Return text that JSON can carry: bytes of an argument that are no UTF-8 become a replacement character."""
    return _SURROGATE.sub("\ufffd", text)


class Failed(Exception):
    """No answer. The message is one line for the user; ``document`` is the server's error as it came, if it did."""

    def __init__(self, line: str, exit_code: int = CLIENT_FAULT, document: Mapping[str, Any] | None = None) -> None:
        super().__init__(line)
        self.line = plain(line).replace("\n", " ")
        self.exit_code = exit_code
        self.document = document

    @property
    def is_servers_fault(self) -> bool:
        """Whether the same question may be answered later."""
        return self.exit_code == SERVER_FAULT


@contextmanager
def asked_plainly(*, as_json: bool = False, stopped: str = "stopped") -> Iterator[None]:
    """What goes wrong while a system is asked ends in one line (with ``as_json``, in the server's error) and an exit
    code. ``stopped`` is said after Ctrl-C."""
    try:
        yield
    except Failed as error:
        if as_json and error.document is not None:
            typer.echo(json.dumps(error.document, indent=2))
        else:
            typer.echo(f"vireo: {error.line}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo(f"vireo: {stopped}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def told_plainly() -> Iterator[None]:
    """Mistakes of the user end in one line and exit status 2, not in a traceback."""
    try:
        yield
    except ValueError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def progress_bar() -> Progress:
    """A bar with what is being done, how much of it is, and when it will be."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def phases(progress: Progress) -> OnProgress:
    """Show each thing that is told of as a bar of its own."""
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done)

    return show
