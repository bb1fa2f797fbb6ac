"""What an operator has changed of the tenants, in Redis, where all gateways and replicas look; and who did, and when.

Whoever can write to Redis must not be able to let himself in. So all records are one value under a seal: nobody else
can make one, and none can be mixed with another. An older value could be put back; therefore versions only grow, a
gateway that has seen a newer one takes nothing older, and puts its own back, also when it is gone. It keeps a copy in
``run_dir`` for its next start, and says which version it has, so that nobody changes an older one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import redis.asyncio as aioredis
import structlog
from redis.exceptions import NoScriptError

from serving.config import ResolvedConfig
from serving.errors import StoreUnavailable
from serving.stores import keys
from serving.stores.connection import RedisConfig, RedisConnection
from serving.stores.periodic import Periodic
from serving.stores.scripts import Script
from serving.stores.sealed import Sealer
from serving.tenants import Known, LiveTenants, TenantRecords, overlay

_log = structlog.get_logger(__name__)
_MAX_AUDITED: Final = 10_000
_ANNOUNCED_S: Final = 60
_ANNOUNCE_EVERY_S: Final = 20.0
_CLOCKS_S: Final = 60.0
"""By how much the clocks of two machines may differ."""
_COPY_NAME: Final = "tenants"
_MAX_LOGGED: Final = 20
"""Changes that are told of when many came at once."""

_LOOK = Script(
    """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return '' end
return redis.sha1hex(redis.call('GET', KEYS[1]))
"""
)
_READ = Script("if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return '' end return redis.call('GET', KEYS[1])")
_WRITE = Script(
    """
local kind = redis.call('TYPE', KEYS[1]).ok
local now = kind == 'string' and redis.call('GET', KEYS[1]) or ''
if now ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then
  local log = redis.call('TYPE', KEYS[2]).ok
  if log ~= 'stream' and log ~= 'none' then redis.call('DEL', KEYS[2]) end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'version', ARGV[3], 'entry', ARGV[4])
end
return 1
"""
)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit log. ``version``: of the records after it; ``after``: of those before, so that a gap
    shows. ``fields``: what was set; never a key."""

    version: int
    after: int
    at_s: float
    actor: str
    action: str
    tenant: str
    fields: dict[str, Any] = {}


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway has: the tenants of its configuration, and the version of the records. ``at_s``: Unix time."""

    at_s: float
    version: int
    base: list[Known]


class TenantStore:
    """Use from one event loop; ``stop`` when done. Every method raises ``StoreUnavailable`` when Redis is away."""

    def __init__(self, config: RedisConfig, secret: bytes) -> None:
        self._connection = RedisConnection(config)
        self._records = Sealer(secret, "tenants")
        self._changes = Sealer(secret, "change of tenants")
        self._base = Sealer(secret, "tenants of the configuration")
        # Deployments with other secrets may share a server: what one of them cannot open is not its own.
        owner = hmac.digest(secret, b"vireo name of tenants", "sha256").hex()[:16]
        self._name, self._log_name, self._base_name = keys.tenants(owner)

    async def stop(self) -> None:
        """Close the connection."""
        await self._connection.stop()

    async def mark(self) -> bytes:
        """What changes with every change of the records: cheap to ask for again and again. Empty: there are none."""
        return bytes(await self._run("mark", _LOOK, [self._name]))

    async def read(self) -> bytes:
        """The records as they lie there; empty: there are none."""
        return bytes(await self._run("read", _READ, [self._name]))

    def open(self, sealed: bytes) -> TenantRecords | None:
        """What is in it; None if it is not ours."""
        raw = self._records.open(self._name, sealed)
        return None if raw is None else msgspec.msgpack.decode(raw, type=TenantRecords)

    def seal(self, records: TenantRecords) -> bytes:
        """As it is written."""
        return self._records.seal(self._name, msgspec.msgpack.encode(records))

    async def write(self, before: bytes, sealed: bytes, change: Change | None = None) -> bool:
        """Exchange the records, and log the change with them. False, and nothing is changed: they are not ``before``
        any more."""
        entry: list[str | bytes | int] = ["", ""]
        if change is not None:
            entry = [change.version, self._changes.seal(str(change.version), msgspec.msgpack.encode(change))]
        arguments = [before, sealed, *entry, _MAX_AUDITED]
        return bool(await self._run("write", _WRITE, [self._name, self._log_name], *arguments))

    async def audit(self, num: int) -> list[Change]:
        """The latest changes, newest first. What somebody else wrote among them is passed over."""

        async def send(client: aioredis.Redis) -> Any:
            return await client.xrevrange(self._log_name, count=num)

        found = []
        for _, entry in await self._connection.call("tenants.audit", send):
            raw = self._changes.open(entry.get(b"version", b"").decode("ascii", "replace"), entry.get(b"entry", b""))
            if raw is not None:
                found.append(msgspec.msgpack.decode(raw, type=Change))
        return found

    async def announce(self, announcement: Announcement) -> None:
        """Say for a minute what a gateway has."""
        sealed = self._base.seal(self._base_name, msgspec.msgpack.encode(announcement))

        async def send(client: aioredis.Redis) -> None:
            await client.set(self._base_name, sealed, ex=_ANNOUNCED_S)

        await self._connection.call("tenants.announce", send)

    async def announced(self, now_s: float) -> Announcement | None:
        """What a gateway said last; None: none with our secret has been there for a minute."""
        sealed = bytes(await self._run("announced", _READ, [self._base_name]))
        raw = self._base.open(self._base_name, sealed)
        said = None if raw is None else msgspec.msgpack.decode(raw, type=Announcement)
        return said if said is not None and abs(now_s - said.at_s) < _ANNOUNCED_S + _CLOCKS_S else None

    async def _run(self, operation: str, script: Script, names: Sequence[str], *arguments: str | bytes | float) -> Any:
        async def send(client: aioredis.Redis) -> Any:
            try:
                return await client.evalsha(script.sha1, len(names), *names, *arguments)
            except NoScriptError:
                return await client.eval(script.source, len(names), *names, *arguments)

        return await self._connection.call(f"tenants.{operation}", send)


class TenantWatch(Periodic):
    """Keeps ``live`` as the records say. ``begin`` it on the loop, ``stop`` when done. ``copy``: where a gateway keeps
    the newest records; None for a replica, which neither tells of its configuration nor puts anything back."""

    def __init__(
        self, live: LiveTenants, store: TenantStore, *, copy: Path | None = None, every_s: float = 1.0
    ) -> None:
        super().__init__(every_s)
        self._live = live
        self._store = store
        self._copy = copy
        self._mark = b""
        self._sealed = b""
        self._announced_s = -_ANNOUNCE_EVERY_S
        self._announced_version = 0
        self._is_away = False

    async def begin(self) -> None:
        """Take the copy of the last start, then what Redis has, and go on looking. A dead Redis is no reason not to."""
        if self._copy is not None:
            self._take(_bytes_at(self._copy))
        await self._once()
        self.start()

    async def stop(self) -> None:
        """End. Idempotent."""
        await super().stop()
        await self._store.stop()

    async def look(self) -> None:
        """Take what has changed. Raises: StoreUnavailable: it stays as it is."""
        mark, before = await self._store.mark(), self._live.now.version
        if mark != self._mark:
            await self._read(mark, before)
        if self._copy is not None:
            await self._announce()

    async def _read(self, mark: bytes, before: int) -> None:
        sealed = await self._store.read()
        if self._take(sealed):
            await self._log_changes(before)
        elif self._copy is not None and self._sealed:
            _log.warning("tenants in Redis were gone, older or damaged: those of this gateway are put back")
            await self._store.write(sealed, self._sealed)
        else:
            self._mark = mark

    def _take(self, sealed: bytes) -> bool:
        """Whether these count from now on."""
        records = self._store.open(sealed) if sealed else None
        version = self._live.now.version
        if records is None or records.version < version:
            return False
        tenants = overlay(self._live.base, records)
        self._live.replace(tenants)
        for tenant, why in tenants.unusable.items():
            _log.error("tenant is closed: its record cannot be used", tenant=tenant, version=records.version, why=why)
        self._sealed, self._mark = sealed, _mark(sealed)
        if self._copy is not None:
            _keep(self._copy, sealed)
        _log.info("tenants", version=records.version, tenants=len(tenants.settings), before=version)
        return True

    async def _log_changes(self, before: int) -> None:
        """Say on a gateway what the audit log has of the changes since that version; at a first start, of none."""
        if self._copy is None or not before:
            return
        for change in reversed(await self._store.audit(_MAX_LOGGED)):
            if change.version > before:
                _log.info("tenant changed", **msgspec.structs.asdict(change))

    async def _announce(self) -> None:
        version, is_due = self._live.now.version, time.monotonic() - self._announced_s >= _ANNOUNCE_EVERY_S
        if is_due or version != self._announced_version:
            base = [Known.of(tenant) for tenant in self._live.base]
            await self._store.announce(Announcement(at_s=time.time(), version=version, base=base))
            self._announced_s, self._announced_version = time.monotonic(), version

    async def _once(self) -> None:
        try:
            await self.look()
        except StoreUnavailable as error:
            if not self._is_away:
                _log.warning("tenants stay as they are: Redis is away", error=error.message)
            self._is_away = True
        except Exception:  # whatever it met, later changes must still be seen
            _log.exception("looking for changes of tenants failed")
        else:
            self._is_away = False


def build_watch(config: ResolvedConfig, live: LiveTenants, *, is_gateway: bool = False) -> TenantWatch:
    """The watch of a configuration. Not begun."""
    redis = RedisConfig(url=config.store_url, timeout_s=config.settings.jobs.redis_timeout_s, max_connections=1)
    copy = config.run_dir / _COPY_NAME if is_gateway else None
    return TenantWatch(live, TenantStore(redis, config.secret.encode()), copy=copy)


def _mark(sealed: bytes) -> bytes:
    """As ``TenantStore.mark``. Says whether to look: what is found is trusted for its seal."""
    return hashlib.sha1(sealed, usedforsecurity=False).hexdigest().encode()


def _bytes_at(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _keep(path: Path, sealed: bytes) -> None:
    """Write in one step. It holds hashes of keys: for this user only."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(sealed)
        draft.replace(path)
    except OSError as error:
        _log.warning("tenants are not kept for the next start", path=str(path), why=error.strerror)
