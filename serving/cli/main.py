"""``vireo``: the console command. A task brings its own commands. Each imports what it needs when it is called."""

from __future__ import annotations

import sys

import typer

from serving.cli import convert_commands, families_command, metrics_command, model_commands, system_commands
from serving.errors import ConfigError
from serving.tasks.table import TASKS

app = typer.Typer(
    name="vireo",
    help="Serve vision models inside a latency and an energy budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def build() -> typer.Typer:
    """Register every command: those about the system, those of each task, those about models."""
    from loadtest import cli as loadtest_cli

    system_commands.register(app)
    metrics_command.register(app)
    for task in TASKS:
        if task.verbs is not None:
            task.verbs.load()(app)
    for module in (model_commands, families_command, convert_commands, loadtest_cli):
        module.register(app)
    return app


def main() -> None:
    """Entry point of the console script. Mistakes of configuration end in one line, not in a traceback."""
    try:
        build()()
    except ConfigError as error:
        sys.exit(f"vireo: {error}")
