"""``vireo budget``: what the caller may spend, has spent and has left."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from serving.client.options import DEFAULT_URL, JsonOption, KeyOption, UrlOption
from serving.client.told import asked_plainly, show_table

_EXAMPLES = """\b
Examples:
  vireo budget
  vireo budget --all --json
"""
_COLUMNS = ("tenant", "kind", "left", "of", "per s", "reserved", "spent", "full in")


def register(app: typer.Typer) -> None:
    """Add ``budget``."""
    app.command("budget", epilog=_EXAMPLES, rich_help_panel="Server")(budget)


def budget(
    everyone: Annotated[bool, typer.Option("--all", help="Those of all tenants; needs an admin's key.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Show what you may spend, and what is left of it.

    In joules and in engine seconds; what requests that run have set aside is given back as far as they do not use it.
    """
    from serving.client.http import Client

    with asked_plainly(as_json=as_json), Client(url, api_key) as client:
        document = client.ask("GET", "/v1/budgets" if everyone else "/v1/budget")
        if as_json:
            typer.echo(json.dumps(document, indent=2))
            return
        budgets = document["data"] if everyone else [document]
        show_table(_COLUMNS, [_row(one, kind) for one in budgets for kind in ("joules", "seconds")])


def _row(one: dict[str, Any], kind: str) -> list[str]:
    account = one[kind]
    if account is None:
        return [one["tenant"], kind, "no limit", *[""] * 5]
    full = account["full_in_s"]
    numbers = [f"{account[name]:.4g}" for name in ("level", "burst", "per_s", "reserved", "spent")]
    return [one["tenant"], kind, *numbers, "never" if full is None else f"{full:.3g} s"]
