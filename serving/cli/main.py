"""``vireo``: the console command. Each sub-command lives in a file of its own and imports what it needs when called."""

from __future__ import annotations

import sys

import typer

from serving.cli import (
    chat_command,
    classify_command,
    convert_commands,
    families_command,
    metrics_command,
    model_commands,
    read_command,
    system_commands,
    video_command,
)
from serving.errors import ConfigError

app = typer.Typer(
    name="vireo",
    help="Serve vision models inside a latency and an energy budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def build() -> typer.Typer:
    """Register every command."""
    from loadtest import cli as loadtest_cli

    asking = (classify_command, chat_command, read_command, video_command)
    about_models = (model_commands, families_command, convert_commands)
    for module in (system_commands, metrics_command, *asking, *about_models, loadtest_cli):
        module.register(app)
    return app


def main() -> None:
    """Entry point of the console script. Mistakes of configuration end in one line, not in a traceback."""
    try:
        build()()
    except ConfigError as error:
        sys.exit(f"vireo: {error}")
