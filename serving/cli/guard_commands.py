"""``vireo guard``: pictures that the guard of a running system has in quarantine, and what was done to them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from serving.cli import guard_calibrate
from serving.cli.operators import PANEL, ConfigOption, JsonOption, PortOption, actor, asked, shown_time
from serving.client.options import QuietOption
from serving.client.told import Failed, show_table

if TYPE_CHECKING:
    from serving.guard.store import Entry, Quarantine

T = TypeVar("T")
_HELP = "What the guard compares with, and what it has caught."
_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "list": ("vireo guard list", "vireo guard list --tenant acme --json"),
    "show": ("vireo guard show 3f9a2c01",),
    "release": ("vireo guard release 3f9a2c01", "vireo guard release --tenant acme --all"),
    "audit": ("vireo guard audit", "vireo guard audit --count 100 --json"),
}
_SHOWN_DIGITS = 12
_MIN_DIGITS = 4
_MAX_COUNT = 10_000

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The picture, as `vireo guard list` names it.")]
TenantOption = Annotated[str | None, typer.Option(metavar="NAME", help="Of this tenant alone.")]
CountOption = Annotated[int, typer.Option("--count", "-n", min=1, max=_MAX_COUNT, help="How many, the latest first.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    guard = typer.Typer(no_args_is_help=True, help=_HELP)
    for name, command in (("list", list_entries), ("show", show), ("release", release), ("audit", audit)):
        examples = "\n  ".join(_EXAMPLES[name])
        guard.command(name, epilog=f"\b\nExamples:\n  {examples}\n")(command)
    guard.command("calibrate", epilog=guard_calibrate.EXAMPLES)(guard_calibrate.calibrate)
    app.add_typer(guard, name="guard", rich_help_panel=PANEL)


def list_entries(
    tenant: TenantOption = None,
    count: CountOption = 100,
    port: PortOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the pictures in quarantine.

    A request with one of them is ended where 95% of benign answers have ended, whoever sends it; one
    that is nearly the same, if its tenant sends it that was caught.
    """
    found = [entry for entry in _entries(port, config) if tenant in (None, entry.tenant)][:count]
    if as_json:
        typer.echo(json.dumps([_plain(entry) for entry in found], indent=1))
        return
    cells = [
        (
            entry.id[:_SHOWN_DIGITS],
            entry.tenant,
            entry.model,
            shown_time(entry.at_s),
            shown_time(entry.until_s),
            str(entry.num_tokens),
            ", ".join(entry.reasons),
        )
        for entry in found
    ]
    show_table(("id", "tenant", "model", "caught", "until", "tokens", "reasons"), cells)


def show(id_: IdArgument, port: PortOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show all that is kept of one picture, which is not the picture."""
    plain = _plain(_one(id_, _entries(port, config)))
    if as_json:
        typer.echo(json.dumps(plain, indent=1))
        return
    show_table(("", ""), [(name.removesuffix("_s"), _cell(name, value)) for name, value in plain.items()])


def release(
    id_: Annotated[str | None, typer.Argument(metavar="ID", help="The picture; not with --all.")] = None,
    of_all: Annotated[bool, typer.Option("--all", help="All of them, or all of --tenant.")] = False,
    tenant: TenantOption = None,
    port: PortOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
) -> None:
    """Let a picture out of quarantine, for all tenants. Who did it is in the audit log.

    Caught again, it is quarantined again.
    """
    if of_all == (id_ is not None):
        raise Failed("name one picture, or --all")

    async def released(quarantine: Quarantine) -> int:
        entries = await quarantine.entries()
        chosen = [each for each in entries if tenant in (None, each.tenant)] if id_ is None else [_one(id_, entries)]
        return sum([await quarantine.release(entry, actor()) for entry in chosen])

    num = _run(port, config, released)
    if not quiet:
        typer.echo(f"vireo: released {num} {'picture' if num == 1 else 'pictures'}", err=True)


def audit(
    count: CountOption = 20, port: PortOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show what was caught and released, when, and by whom."""
    events = _run(port, config, lambda quarantine: quarantine.audit(count))
    if as_json:
        import msgspec

        typer.echo(json.dumps([msgspec.to_builtins(event) for event in events], indent=1))
        return
    cells = [
        (
            shown_time(event.at_s),
            event.actor,
            event.action,
            event.entry_id[:_SHOWN_DIGITS],
            event.tenant,
            ", ".join(event.reasons),
        )
        for event in events
    ]
    show_table(("when", "who", "did", "id", "tenant", "reasons"), cells)


def _entries(port: int | None, config: Path | None) -> list[Entry]:
    return _run(port, config, lambda quarantine: quarantine.entries())


def _one(id_: str, entries: Sequence[Entry]) -> Entry:
    """That whose id begins so. Raises: Failed: none or several do."""
    found = [entry for entry in entries if entry.id.startswith(id_.lower())] if len(id_) >= _MIN_DIGITS else []
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} pictures begin" if found else "no picture in quarantine begins"
    raise Failed(f"{what} with {id_[:40]!r}; `vireo guard list` names them (at least {_MIN_DIGITS} digits)")


def _plain(entry: Entry) -> dict[str, Any]:
    """All but the fingerprint, which is of no use without the secret."""
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(entry)
    return {name: value for name, value in plain.items() if name != "fingerprint"}


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return shown_time(value) if name.endswith("_s") else f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _run(port: int | None, config: Path | None, ask: Callable[[Quarantine], Awaitable[T]]) -> T:
    """Raises: Failed: nothing runs there, or its Redis is away. ConfigError."""
    from serving.guard.store import Quarantine

    return asked(port, config, Quarantine, ask)
