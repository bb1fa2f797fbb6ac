"""Options that commands which ask a running system share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from serving.client.settings import OWN_OPTIONS, option_of, spelt, takes
from serving.client.told import Failed, plain

ASKING = "Ask a running system"
"""Where ``vireo --help`` lists the commands of tasks."""
DEFAULT_URL = "http://127.0.0.1:8000"


def model_ids(incomplete: str) -> list[str]:
    """Return ids that begin so, for the shell."""
    from models.registry import known_ids

    return [model for model in known_ids() if model.startswith(incomplete)]


UrlOption = Annotated[
    str, typer.Option(metavar="URL", envvar="VIREO_URL", help="Where the system listens; HOST:PORT will do.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        "--api-key",
        metavar="KEY",
        envvar="VIREO_API_KEY",
        help="API key, or @FILE to read it from a file. A key given here shows in process lists.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="ID",
        help="Model id; default: the first served model that can do this.",
        autocompletion=model_ids,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no notes.")]
MaxTokensOption = Annotated[int | None, typer.Option(min=1, help="Token limit of an answer.")]
LatencyOption = Annotated[float | None, typer.Option(help="Latency budget in milliseconds.")]
EnergyOption = Annotated[float | None, typer.Option(help="Energy budget in joules.")]
QualityOption = Annotated[float | None, typer.Option(help="Lowest quality of the operating point, 0 to 1.")]
PriorityOption = Annotated[str | None, typer.Option(help="low, normal or high.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the model, repeatable; also --NAME VALUE. With --model ID, --help lists its settings.",
    ),
]
LicenceOption = Annotated[
    bool, typer.Option("--accept-licence", help="Load weights even if their licence is not an open one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as the server sent it.")]


def given(**fields: Any) -> dict[str, Any]:
    """Those that the user has set."""
    return {name: value for name, value in fields.items() if value is not None}


class AskingCommand(TyperCommand):
    """A command with ``SetOption``: options that are not its own are settings of the model."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line."""
        ctx.meta[__name__] = list(args)
        OWN_OPTIONS.set(tuple(name for param in self.params for name in param.opts))
        return super().parse_args(ctx, list(self._with_settings(args)))

    def _with_settings(self, words: Sequence[str]) -> Iterator[str]:
        own = {name: param for param in self.params for name in (*param.opts, *param.secondary_opts)}
        left = list(reversed(words))
        while left:
            word = left.pop()
            name, equals, value = word.partition("=")
            if word == "--":
                yield from (word, *reversed(left))
                return
            if name in own or name == "--help" or not word.startswith("--"):
                yield word
                if name in own and not equals and not getattr(own[name], "is_flag", False) and left:
                    yield left.pop()
            elif equals or (left and not left[-1].startswith("--")):
                yield f"--set={name.removeprefix('--').replace('-', '_')}={value if equals else left.pop()}"
            else:
                yield word  # an option without a value, which is nothing

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and below them the settings of a model that is named."""
        super().format_options(ctx, formatter)
        asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for param in self.params:
            if param.name in ("model", "url", "api_key"):
                default = param.value_from_envvar(ctx) or param.get_default(ctx)
                asked.add_argument(*param.opts, dest=param.name, default=default)
        found, _ = asked.parse_known_args(ctx.meta.get(__name__, []))
        if found.model is not None:
            _write_settings(formatter, found.model, found.url, found.api_key)


def _write_settings(formatter: Any, model: str, url: str, api_key: str | None) -> None:
    from serving.client.http import Client

    try:
        with Client(url, api_key) as client:
            settings = client.model(model)["settings"]
    except Failed as error:
        with formatter.section(f"Settings of {model}"):
            formatter.write_text(f"not known: {error.line}")
        return
    rows = []
    for setting in settings:
        if setting["scope"] == "request":
            schema = setting["schema"]
            words = f"{schema['description']} [default: {spelt(schema['default'])}]"
            rows.append((plain(f"{option_of(setting['name'])} <{takes(schema)}>"), plain(words)))
    with formatter.section(f"Settings of {model}"):
        if rows:
            formatter.write_dl(rows)
        else:
            formatter.write_text("none")
