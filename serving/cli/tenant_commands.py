"""``vireo tenants``: who may come in and what each may, of a system that runs, without a restart.

Changes go through its Redis, sealed with its secret: whoever knows both is its operator. Gateways and replicas look
there every second (``serving.stores.tenants``).
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from serving.cli.operators import PANEL, ConfigOption, JsonOption, PortOption, actor, asked, shown_time
from serving.client.exits import Exit
from serving.client.options import QuietOption
from serving.client.told import Failed, show_table
from serving.errors import ConfigError

if TYPE_CHECKING:
    from serving.stores.tenants import TenantStore
    from serving.tenants import Known, TenantRecord, TenantRecords

T = TypeVar("T")
_HELP = "Tenants of a running system: keys, limits and rights."
_EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "list": ("vireo tenants list", "vireo tenants list --port 8100 --json"),
    "show": ("vireo tenants show acme",),
    "add": ("vireo tenants add acme", "KEY=$(vireo tenants add acme joules_per_s=50 burst_j=500 weight=2)"),
    "set": ("vireo tenants set acme burst_j=1000 max_priority=high", "vireo tenants set acme max_jobs=null"),
    "rotate": ("vireo tenants rotate acme --keep-old-for 7d", "vireo tenants rotate acme --drop-old"),
    "remove": ("vireo tenants remove acme",),
    "audit": ("vireo tenants audit", "vireo tenants audit --count 100 --json"),
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
"""A number that YAML takes for a text."""
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_MAX_DAYS = 3650
_TRIES = 10
_SHOWN_DIGITS = 8

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The tenant.")]
FieldsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="As in the configuration: weight=2, admin=true.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    tenants = typer.Typer(no_args_is_help=True, help=_HELP)
    for name, command in (
        ("list", list_tenants),
        ("show", show),
        ("add", add),
        ("set", set_fields),
        ("rotate", rotate),
        ("remove", remove),
        ("audit", audit),
    ):
        examples = "\n  ".join(_EXAMPLES[name])
        tenants.command(name, epilog=f"\b\nExamples:\n  {examples}\n")(command)
    app.add_typer(tenants, name="tenants", rich_help_panel=PANEL)


class _Seen(NamedTuple):
    base: dict[str, Known]
    records: TenantRecords


# -- looking ---------------------------------------------------------------------------------------------------------


def list_tenants(port: PortOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List all tenants, their shares and their limits."""
    seen = _run(port, config, _see)
    rows = [_described(seen, name) for name in sorted({*seen.base, *seen.records.by_name})]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    shown = ("weight", "joules_per_s", "burst_j", "seconds_per_s", "burst_s", "max_priority", "admin")
    cells = [
        (
            row["name"],
            row["from"] + ", unusable" * bool(row["unusable"]),
            str(row["open_keys"]),
            *(_plain(row["fields"].get(name, "")) for name in shown),
        )
        for row in rows
    ]
    show_table(("tenant", "from", "keys", *(name.replace("_per_s", "/s").replace("_", " ") for name in shown)), cells)


def show(name: NameArgument, port: PortOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show everything about one tenant, but no key."""
    seen = _run(port, config, _see)
    if name not in {*seen.base, *seen.records.by_name}:
        raise Failed(f"no tenant is called {name!r}; `vireo tenants list` names them")
    row = _described(seen, name)
    if as_json:
        typer.echo(json.dumps(row, indent=1))
        return
    fields = [(field, _plain(value) + _mark(field in row["changed"])) for field, value in row["fields"].items()]
    keys = [("key", f"{key['sha256']}..., {_until(key['until'])}") for key in row["keys"]]
    of_config = [("keys of the configuration", f"{row['config_keys']}, {_until(row['config_keys_until'])}")]
    unusable = [("unusable, nobody is let in", row["unusable"])] if row["unusable"] else []
    show_table(("", ""), [("tenant", name), ("from", row["from"]), *unusable, *fields, *keys, *of_config])


def audit(
    num: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="How many changes.")] = 20,
    port: PortOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, and when; newest first."""
    changes = _run(port, config, lambda store: store.audit(num))
    if as_json:
        import msgspec

        typer.echo(json.dumps([msgspec.to_builtins(change) for change in changes], indent=1))
        return
    cells = [
        (shown_time(each.at_s), each.actor, each.action, each.tenant, ", ".join(map("=".join, _pairs(each.fields))))
        for each in changes
    ]
    show_table(("when", "who", "did", "tenant", "fields"), cells)
    for newer, older in pairwise(changes):
        if newer.after != older.version:
            typer.echo(f"vireo: before {shown_time(newer.at_s)} entries are missing: somebody removed them", err=True)


# -- changing --------------------------------------------------------------------------------------------------------


def add(
    name: NameArgument,
    fields: FieldsArgument = None,
    port: PortOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
) -> None:
    """Let a new tenant in. Prints its key, this once: only a hash is kept.

    What has no FIELD=VALUE is as in a configuration that does not name it. Where there were no keys before, everybody
    needs one from now on, also on this machine.
    """
    from serving.tenants import added

    key, digest = _new_key()
    given = _fields(fields or ())
    change = _change(port, config, "add", name, given, lambda seen: added(seen.records, seen.base, name, given, digest))
    typer.echo(key)
    _note("this key is shown once", quiet)
    if not any(known.num_keys for known in change.base.values()) and not _had_keys(change.records):
        _note("there were no keys before: from now on every caller needs one", quiet)


def rotate(
    name: NameArgument,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Close the other keys now.")] = False,
    keep_old_for: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Close the other keys after 90s, 15m, 6h or 7d; default 1d.")
    ] = None,
    port: PortOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
) -> None:
    """Give a tenant a new key, and an end to its others. Prints the key, this once.

    Keys of the configuration are closed with the others. Requests that run are finished.
    """
    from serving.tenants import rotated

    if drop_old and keep_old_for is not None:
        raise ConfigError("--drop-old and --keep-old-for exclude each other")
    now_s = time.time()
    old_until_s = now_s if drop_old else now_s + _seconds(keep_old_for or "1d")
    key, digest = _new_key()
    fields = {"old_keys_until": shown_time(old_until_s)}
    _change(
        port,
        config,
        "rotate",
        name,
        fields,
        lambda seen: rotated(seen.records, seen.base, name, digest, now_s=now_s, old_until_s=old_until_s),
    )
    typer.echo(key)
    _note(f"this key is shown once; the others are closed {'now' if drop_old else shown_time(old_until_s)}", quiet)


def set_fields(
    name: NameArgument,
    fields: FieldsArgument = None,
    port: PortOption = None,
    config: ConfigOption = None,
    quiet: QuietOption = False,
) -> None:
    """Change what a tenant may: its limits, its weight, its rights.

    The fields are those of a tenant in the configuration, over which these values lie from now on.
    """
    from serving.tenants import changed

    given = _fields(fields or ())
    if not given:
        raise ConfigError("nothing to set; write FIELD=VALUE, such as weight=2")
    _change(port, config, "set", name, given, lambda seen: changed(seen.records, seen.base, name, given))
    _note(f"set {', '.join(map('='.join, _pairs(given)))} for {name}", quiet)


def remove(
    name: NameArgument, port: PortOption = None, config: ConfigOption = None, quiet: QuietOption = False
) -> None:
    """Close all keys of a tenant, also those of the configuration.

    Requests that run are finished. Its results, jobs and account stay, and belong to whoever gets its name: give a new
    customer a new one. After the last one nobody is let in, also not from this machine without a key.
    """
    from serving.tenants import removed

    seen = _change(port, config, "remove", name, {}, lambda seen: removed(seen.records, seen.base, name))
    _note(f"{name} is let in no more", quiet)
    others = {*seen.base, *seen.records.by_name} - {name}
    if not any(_described(seen, other)["open_keys"] for other in others):
        _note("that was the last key: nobody is let in until `vireo tenants add` makes another", quiet)


def _change(
    port: int | None,
    config: Path | None,
    action: str,
    name: str,
    fields: dict[str, Any],
    of: Callable[[_Seen], TenantRecords],
) -> _Seen:
    """Make a change, and return what was there before. Raises: Failed."""

    async def change(store: TenantStore) -> _Seen:
        import msgspec

        from serving.stores.tenants import Change

        for _ in range(_TRIES):
            sealed = await store.read()
            seen = await _see(store, sealed)
            try:
                after = of(seen)
            except ValueError as error:
                raise Failed(str(error)) from None
            before, now_s = seen.records.version, time.time()
            # Grows over a server that has lost everything, too.
            version = max(before + 1, int(1e3 * now_s))
            entry = Change(
                version=version, after=before, at_s=now_s, actor=actor(), action=action, tenant=name, fields=fields
            )
            if await store.write(sealed, store.seal(msgspec.structs.replace(after, version=version)), entry):
                return seen
        raise Failed(f"others changed tenants {_TRIES} times meanwhile; nothing was changed, try again", Exit.BUSY)

    return _run(port, config, change)


async def _see(store: TenantStore, sealed: bytes | None = None) -> _Seen:
    """Raises: Failed: no system is there."""
    from serving.tenants import TenantRecords

    said = await store.announced(time.time())
    if said is None:
        raise Failed(
            "no gateway has been seen there with this secret: is the system up, and is this its configuration "
            "(--config)?",
            Exit.UNREACHABLE,
        )
    sealed = await store.read() if sealed is None else sealed
    records = store.open(sealed) or TenantRecords()
    if records.version < said.version:
        raise Failed(
            "Redis has older tenants than the gateways, which put theirs back within seconds: try again", Exit.BUSY
        )
    return _Seen({known.name: known for known in said.base}, records)


def _run(port: int | None, config: Path | None, ask: Callable[[TenantStore], Awaitable[T]]) -> T:
    """Raises: Failed: nothing runs there, or its Redis is away. ConfigError."""
    from serving.stores.tenants import TenantStore

    return asked(port, config, TenantStore, ask)


# -- words -----------------------------------------------------------------------------------------------------------


def _described(seen: _Seen, name: str) -> dict[str, Any]:
    from serving.tenants import FIELDS, TenantRecord, checked

    record, known = seen.records.by_name.get(name), seen.base.get(name)
    changed = record or TenantRecord()
    fields: dict[str, Any] = {}
    unusable = None
    if not changed.is_removed:
        try:
            settings = checked(name, changed.fields, None if known is None else known.settings)
            fields = {field: getattr(settings, field) for field in FIELDS}
        except ValueError as error:
            unusable = str(error)
    keys = [{"sha256": key.sha256[:_SHOWN_DIGITS], "until": key.until_s} for key in changed.keys]
    config_keys = 0 if known is None or changed.is_removed else known.num_keys
    open_keys = config_keys * _is_open(changed.config_keys_until_s) + sum(_is_open(key["until"]) for key in keys)
    return {
        "name": name,
        "from": _source(known, record),
        "unusable": unusable,
        "fields": fields,
        "changed": sorted(changed.fields),
        "keys": keys,
        "config_keys": config_keys,
        "config_keys_until": changed.config_keys_until_s,
        "open_keys": 0 if unusable else open_keys,
    }


def _source(known: Known | None, record: TenantRecord | None) -> str:
    if record is None:
        return "configuration"
    if record.is_removed:
        return "removed here"
    return "added here" if known is None else "configuration, changed here"


def _had_keys(records: TenantRecords) -> bool:
    return any(record.keys or record.is_removed for record in records.by_name.values())


def _is_open(until_s: Any) -> bool:
    return until_s is None or until_s > time.time()


def _until(until_s: float | None) -> str:
    if until_s is None:
        return "open"
    return f"open until {shown_time(until_s)}" if _is_open(until_s) else "closed"


def _mark(is_changed: bool) -> str:
    return " (set here)" if is_changed else ""


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pairs(fields: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _plain(value)) for name, value in fields.items()]


def _note(line: str, is_quiet: bool) -> None:
    if not is_quiet:
        typer.echo(f"vireo: {line}", err=True)


def _new_key() -> tuple[str, str]:
    """A key and its hash."""
    key = f"vk-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def _fields(written: Sequence[str]) -> dict[str, Any]:
    """Raises: ConfigError: one is no FIELD=VALUE."""
    import yaml

    fields: dict[str, Any] = {}
    for each in written:
        name, equals, text = each.partition("=")
        if not equals:
            raise ConfigError(f"{each[:100]!r} has no '='; write FIELD=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{name}: the value is not YAML; put it in quotes") from None
        fields[name] = float(text) if isinstance(value, str) and _EXPONENT.fullmatch(text) else value
    return fields


def _seconds(text: str) -> float:
    """Raises: ConfigError: it is no duration, or one of more than ten years."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ConfigError(f"{text[:40]!r} is no duration; write 90s, 15m, 6h or 7d")
    seconds = float(found[1]) * _UNIT_S[found[2]]
    if seconds > _MAX_DAYS * _UNIT_S["d"]:
        raise ConfigError(f"{text[:40]!r} is too long; write at most 10 years, {_MAX_DAYS}d")
    return seconds
