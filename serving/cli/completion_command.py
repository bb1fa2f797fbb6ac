"""``vireo completion SHELL``: what makes a shell complete commands, options and models."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Shell", epilog=_EXAMPLES)(completion)


_EXAMPLES = """\b
Examples:
  vireo --install-completion              for this user and this shell
  source <(vireo completion bash)         for this session of bash
  vireo completion zsh > ~/.zfunc/_vireo
  vireo completion fish > ~/.config/fish/completions/vireo.fish
"""


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell.", show_choices=True)],
) -> None:
    """Print the completion script of a shell."""
    from typer._completion_shared import get_completion_script

    typer.echo(get_completion_script(prog_name="vireo", complete_var="_VIREO_COMPLETE", shell=shell))
