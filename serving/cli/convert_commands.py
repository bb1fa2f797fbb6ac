"""``vireo convert FAMILY``: published weights into the folders that Vireo serves, as each family says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from serving.client.options import LicenceOption, QuietOption
from serving.client.told import phases, progress_bar, told_plainly

if TYPE_CHECKING:
    from models.contract import Family


def register(app: typer.Typer) -> None:
    """Add ``convert`` to the command line."""
    app.command(
        "convert",
        add_help_option=False,
        rich_help_panel="Models",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
    )(convert)


def convert(context: typer.Context) -> None:
    """Bring published weights into Vireo's form."""
    group_for(context.args)(context.args, prog_name=context.command_path)


def group_for(words: Sequence[str]) -> typer.Typer:
    """A group of commands for one call, as what a command takes is known once its family's code is imported."""
    from models.registry import families

    group = typer.Typer(no_args_is_help=True, help=convert.__doc__, add_completion=False, rich_markup_mode=None)
    group.callback()(lambda: None)
    with told_plainly():
        for family in families().values():
            if "convert" in family.parts:
                is_asked = list(words[:1]) == [family.name]
                command = _command(family, family.part("convert")) if is_asked else lambda: None
                group.command(family.name, short_help=family.summary)(command)
    return group


def _command(family: Family, part: Callable[..., list[str]]) -> Callable[..., None]:
    """A command with the parameters of a family's part ``convert``, but for those that are not the user's to give."""
    from models.contract import check_licence

    yours = [variant.id for variant in family.variants if variant.weights is None]

    def command(
        model: Annotated[str, typer.Option(help="Model id that the weights belong to.")],
        accept_licence: LicenceOption,
        quiet: QuietOption,
        **given: Any,
    ) -> None:
        with told_plainly(), progress_bar(quiet=quiet) as progress:
            variant = next((variant for variant in family.variants if variant.id == model), None)
            if variant is None:
                raise ValueError(f"{model!r} is no model of {family.name}; those are {', '.join(yours)}")
            check_licence(variant, is_accepted=accept_licence)
            lines = part(variant, **given, on_progress=phases(progress))
        for line in lines:
            typer.echo(line)

    own = list(inspect.signature(command, eval_str=True).parameters.values())[:3]
    model = yours[0] if len(yours) == 1 else inspect.Parameter.empty
    defaults = {"model": model, "accept_licence": False, "quiet": False}
    parameters = [
        *map(_shown, inspect.signature(part, eval_str=True).parameters.values()),
        *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=defaults[one.name]) for one in own),
    ]
    signature = inspect.Signature([one for one in parameters if one.name not in ("variant", "on_progress")])
    command.__dict__["__signature__"] = signature
    command.__annotations__ = {}
    command.__doc__ = (inspect.getdoc(part) or "").partition("\n\n")[0]
    return command


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """Keyword-only ones become options, the others arguments; a text in ``Annotated`` explains them."""
    kind, words = parameter.annotation, None
    if get_origin(kind) is Annotated:
        kind, words = get_args(kind)[:2]
    is_option = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    shown = typer.Option(help=words) if is_option else typer.Argument(help=words)
    return parameter.replace(annotation=Annotated[kind, shown])
