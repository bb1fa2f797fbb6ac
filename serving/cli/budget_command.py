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

    In joules and in engine seconds, and the joules of this day and month of UTC. What requests that run have set aside
    is given back as far as they do not use it.
    """
    from serving.client.http import Client

    with asked_plainly(as_json=as_json), Client(url, api_key) as client:
        document = client.ask("GET", "/v1/budgets" if everyone else "/v1/budget")
        if as_json:
            typer.echo(json.dumps(document, indent=2))
            return
        budgets = document["data"] if everyone else [document]
        show_table(_COLUMNS, [row for one in budgets for row in _rows(one)])


def _rows(one: dict[str, Any]) -> list[list[str]]:
    kinds = [_row(one, kind) for kind in ("joules", "seconds")]
    return kinds + [_spending_row(one, period) for period in ("day", "month") if one.get(period)]


def _spending_row(one: dict[str, Any], period: str) -> list[str]:
    cap, spent = one[period]["cap_j"], one[period]["spent_j"]
    left, of = ("no limit", "") if cap is None else (f"{cap - spent:.4g}", f"{cap:.4g}")
    return [one["tenant"], f"joules/{period}", left, of, "", "", f"{spent:.4g}", _in(one[period]["resets_in_s"])]


def _row(one: dict[str, Any], kind: str) -> list[str]:
    account = one[kind]
    if account is None:
        return [one["tenant"], kind, "no limit", *[""] * 5]
    full = account["full_in_s"]
    numbers = [f"{account[name]:.4g}" for name in ("level", "burst", "per_s", "reserved", "spent")]
    return [one["tenant"], kind, *numbers, "never" if full is None else _in(full)]


def _in(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 3600.0 else f"{seconds / 3600.0:.3g} h"
