"""All commands of ``vireo``. A task brings its own. Each imports what it needs when it is called, so that help and
completion are there at once; and whatever goes wrong in one ends in a line and an exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from serving.client.exits import SUMMARY, Exit
from serving.client.told import Failed, leave
from serving.errors import ConfigError
from serving.tasks.table import TASKS

_EXAMPLES = """\b
Examples:
  vireo up --detach                        start a system; `vireo down` stops it
  vireo classify examples/digit-7.png      ask it something
  vireo models list                        what can be served, and what is
  vireo classify a.png --url HOST:8000 --key @key.txt
"""


class Root(TyperGroup):
    """Lists commands by what they are for, and tells failures plainly."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _plainly():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each kind of command."""
        kinds: dict[str, list[tuple[str, Any]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            kinds.setdefault(getattr(command, "rich_help_panel", None) or "Other", []).append((name, command))
        widest = max(map(len, self.commands))
        for kind, commands in kinds.items():
            with formatter.section(kind):
                formatter.write_dl(
                    [
                        (name.ljust(widest), command.get_short_help_str(formatter.width - widest - 4))
                        for name, command in commands
                    ]
                )


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        leave(str(error), Exit.USAGE)
    except Failed as error:
        leave(error.line, error.exit_code)
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read our output has had enough
            raise
        named = "" if error.filename is None else f"{error.filename}: "
        leave(f"{named}{error.strerror or error}", Exit.FAILED)
    except KeyboardInterrupt:
        leave("stopped", Exit.INTERRUPTED)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"vireo {version('vireo')}")
        raise typer.Exit


def root(
    _: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Serve vision models inside a latency and an energy budget."""


def build() -> typer.Typer:
    """Return the command line: commands about the system, those of each task, those about models."""
    from serving.cli import (
        budget_command,
        completion_command,
        convert_commands,
        families_command,
        guard_commands,
        loadtest_commands,
        metrics_command,
        model_commands,
        moe_commands,
        simulate_command,
        system_commands,
        tenant_commands,
    )

    app = typer.Typer(
        name="vireo",
        cls=Root,
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help is read at any width, piped and aloud, and does not wait for rich
        pretty_exceptions_enable=False,
        epilog=f"{_EXAMPLES}\n{SUMMARY}\n\n'vireo COMMAND --help' says more; all of it is in docs/cli.md.",
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(root)
    system_commands.register(app)
    metrics_command.register(app)
    tenant_commands.register(app)
    guard_commands.register(app)
    budget_command.register(app)
    for task in TASKS:
        if task.verbs is not None:
            task.verbs.load()(app)
    for module in (
        model_commands,
        moe_commands,
        families_command,
        guard_commands,
        convert_commands,
        loadtest_commands,
        simulate_command,
        completion_command,
    ):
        module.register(app)
    return app
