"""Who the tenants are and what each may: those of the configuration, and over them what an operator has changed since.

``Tenants`` is a snapshot that never changes; ``LiveTenants`` holds the one that counts now and is given the next one as
a whole. What needs something of the tenants takes a view of it, which looks at the snapshot of the moment. Changes are
pure functions of records; ``serving.stores.tenants`` keeps those in Redis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from pydantic import ValidationError

from serving.config.sections import TenantSettings

T = TypeVar("T")
FIELDS: Final = tuple(name for name in TenantSettings.model_fields if name not in ("name", "api_key_sha256"))
"""What an operator may set of a tenant."""
MAX_RECORDS: Final = 10_000
NO_KEYS_TENANT: Final = "local"
"""Whoever is served where there are no keys."""


class KeyRecord(msgspec.Struct, frozen=True):
    """An API key that an operator has made. ``until_s``: Unix time at which it is closed, None for never."""

    sha256: str
    until_s: float | None = None


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was changed of a tenant. ``fields`` lie over those of the configuration, or over the defaults of a tenant
    that it does not have. ``config_keys_until_s``: when the keys in the configuration are closed, None for never."""

    fields: dict[str, Any] = {}
    keys: tuple[KeyRecord, ...] = ()
    config_keys_until_s: float | None = None
    is_removed: bool = False


class TenantRecords(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was changed, as of ``version``, which only grows."""

    version: int = 0
    by_name: dict[str, TenantRecord] = {}


class TenantKey(NamedTuple):
    """A key that opens the door, until ``until_s`` (Unix time)."""

    tenant: str
    sha256: str
    until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Tenants:
    """All that may come in. ``settings`` by name; ``unusable``: why a record is no tenant. ``needs_key``: there is a
    key, or there was one before an operator took it away."""

    version: int
    settings: Mapping[str, TenantSettings]
    keys: tuple[TenantKey, ...]
    unusable: Mapping[str, str]
    needs_key: bool


def overlay(base: Sequence[TenantSettings], records: TenantRecords) -> Tenants:
    """Lay what was changed over the configuration.

    A record that is no tenant, as of a release that allows more, closes this one: what the configuration says of it may
    be more than it should have. The others count as ever, above all those that were removed.
    """
    settings: dict[str, TenantSettings] = {}
    keys: list[TenantKey] = []
    unusable: dict[str, str] = {}
    own = {tenant.name: tenant for tenant in base}
    for name in dict.fromkeys((*own, *records.by_name)):
        record = records.by_name.get(name, TenantRecord())
        if record.is_removed:
            continue
        try:
            settings[name] = checked(name, record.fields, own.get(name))
        except ValueError as error:
            unusable[name] = str(error)
        else:
            keys += _keys(name, record, own.get(name))
    # Removing the last tenant must not make whoever is on this machine its operator.
    needs_key = bool(keys or unusable) or any(one.keys or one.is_removed for one in records.by_name.values())
    return Tenants(records.version, settings, tuple(keys), unusable, needs_key)


def checked(name: str, fields: Mapping[str, Any], base: TenantSettings | None = None) -> TenantSettings:
    """The settings of a tenant with ``fields`` set. Fields that only another release knows are left out.

    Raises: ValueError: a name or a value that the configuration would refuse.
    """
    written = {} if base is None else {field: getattr(base, field) for field in FIELDS}
    known = {field: value for field, value in fields.items() if field in FIELDS}
    try:
        return TenantSettings.model_validate({"name": name, **written, **known})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ValueError("; ".join(lines)) from None


def _keys(name: str, record: TenantRecord, base: TenantSettings | None) -> Iterator[TenantKey]:
    if base is not None:
        until_s = math.inf if record.config_keys_until_s is None else record.config_keys_until_s
        yield from (TenantKey(name, digest.lower(), until_s) for digest in base.api_key_sha256)
    for key in record.keys:
        yield TenantKey(name, key.sha256, math.inf if key.until_s is None else key.until_s)


class LiveTenants:
    """The tenants as of now. Given others on one thread; looked at on any."""

    def __init__(self, base: Sequence[TenantSettings] = ()) -> None:
        self.base = tuple(base)
        self._now = overlay(self.base, TenantRecords())
        self._told: list[Callable[[Tenants], None]] = []

    @property
    def now(self) -> Tenants:
        """The snapshot that counts."""
        return self._now

    def replace(self, tenants: Tenants) -> None:
        """From now on it is these."""
        self._now = tenants
        for tell in self._told:
            tell(tenants)

    def each(self, tell: Callable[[Tenants], None]) -> None:
        """Tell of the snapshot of now, and of every later one."""
        self._told.append(tell)
        tell(self._now)

    def view(self, of: Callable[[TenantSettings], T]) -> Mapping[str, T]:
        """What ``of`` makes of each tenant, by name: always that of the snapshot of the moment."""
        return _View(self, of)

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the tenants, in every queue that they share."""
        return self.view(lambda tenant: tenant.weight)


class _View(Mapping[str, T]):
    def __init__(self, live: LiveTenants, of: Callable[[TenantSettings], T]) -> None:
        self._live = live
        self._of = of
        self._made = self._make()

    def _make(self) -> tuple[Tenants, dict[str, T]]:
        now = self._live.now
        return now, {name: self._of(tenant) for name, tenant in now.settings.items()}

    def _values(self) -> dict[str, T]:
        if self._made[0] is not self._live.now:
            self._made = self._make()
        return self._made[1]

    def __getitem__(self, name: str) -> T:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())


# -- changes: each takes records and gives those after it, of the same version -----------------------------------------


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant of the configuration, as gateways tell of it: without the hashes of its keys."""

    name: str
    fields: dict[str, Any]
    num_keys: int

    @classmethod
    def of(cls, tenant: TenantSettings) -> Known:
        """What may be told of a tenant."""
        fields = tenant.model_dump(mode="json", include=set(FIELDS))
        return cls(name=tenant.name, fields=fields, num_keys=len(tenant.api_key_sha256))

    @property
    def settings(self) -> TenantSettings:
        """As in the configuration, without keys."""
        return checked(self.name, self.fields)


Base = Mapping[str, Known]


def added(records: TenantRecords, base: Base, name: str, fields: Mapping[str, Any], digest: str) -> TenantRecords:
    """A new tenant with one key; what a removed one of that name had in the configuration stays closed.

    Raises: ValueError: there is one of that name, a field is wrong, or there are too many.
    """
    earlier = records.by_name.get(name)
    if is_known(records, base, name):
        raise ValueError(f"tenant {name!r} exists; `rotate` makes another key, `set` changes what it may")
    if earlier is None and len(records.by_name) >= MAX_RECORDS:
        raise ValueError(f"{MAX_RECORDS} tenants were changed here, which is the limit; put them in the configuration")
    _check_fields(fields)
    checked(name, fields, base[name].settings if name in base else None)
    closed_at_s = 0.0 if earlier is not None else None
    return _with(
        records, name, TenantRecord(fields=dict(fields), keys=(KeyRecord(digest),), config_keys_until_s=closed_at_s)
    )


def rotated(
    records: TenantRecords, base: Base, name: str, digest: str, *, now_s: float, old_until_s: float
) -> TenantRecords:
    """One more key; the others, also those of the configuration, are closed at ``old_until_s`` or when they would be
    anyway. Raises: ValueError: no such tenant."""
    record = _existing(records, base, name)
    kept = [_closing(key, old_until_s) for key in record.keys]
    open_still = tuple(key for key in kept if key.until_s is None or key.until_s > now_s)
    earlier = record.config_keys_until_s
    config_until_s = old_until_s if earlier is None else min(earlier, old_until_s)
    after = msgspec.structs.replace(record, keys=(*open_still, KeyRecord(digest)), config_keys_until_s=config_until_s)
    return _with(records, name, after)


def changed(records: TenantRecords, base: Base, name: str, fields: Mapping[str, Any]) -> TenantRecords:
    """Other limits and rights. Raises: ValueError: no such tenant, or a field is wrong."""
    is_nobody = name == NO_KEYS_TENANT and not is_known(records, base, name)
    record = TenantRecord() if is_nobody else _existing(records, base, name)
    _check_fields(fields)
    after = msgspec.structs.replace(record, fields={**record.fields, **fields})
    checked(name, after.fields, base[name].settings if name in base else None)
    return _with(records, name, after)


def removed(records: TenantRecords, base: Base, name: str) -> TenantRecords:
    """Nobody comes in as that tenant any more, whatever the configuration says. Raises: ValueError: no such tenant."""
    if name == NO_KEYS_TENANT:
        raise ValueError(f"tenant {name!r} is whoever is served without keys; set its limits instead")
    _existing(records, base, name)
    return _with(records, name, TenantRecord(is_removed=True))


def is_known(records: TenantRecords, base: Base, name: str) -> bool:
    """Whether there is a tenant of that name."""
    record = records.by_name.get(name)
    return name in base if record is None else not record.is_removed


def _existing(records: TenantRecords, base: Base, name: str) -> TenantRecord:
    if not is_known(records, base, name):
        known = sorted(one for one in {*base, *records.by_name} if is_known(records, base, one))
        raise ValueError(f"no tenant is called {name!r}; there are: {', '.join(known[:20]) or 'none'}")
    return records.by_name.get(name, TenantRecord())


def _check_fields(fields: Mapping[str, Any]) -> None:
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise ValueError(f"a tenant has no field {unknown[0]!r} that can be set; it has {', '.join(FIELDS)}")


def _closing(key: KeyRecord, until_s: float) -> KeyRecord:
    return KeyRecord(key.sha256, until_s if key.until_s is None else min(key.until_s, until_s))


def _with(records: TenantRecords, name: str, record: TenantRecord) -> TenantRecords:
    return msgspec.structs.replace(records, by_name={**records.by_name, name: record})
