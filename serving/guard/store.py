"""Pictures that were caught, in Redis, where all gateways look: known again when they come back, until they expire.

*Exactly* the same pixels count whoever sends them. What only *looks* like them (``serving.guard.fingerprints``) counts
for the tenant that was caught, and for nobody else: who changes a popular picture a little, and is caught with it, must
not make everybody's original suspect. And what makes one model's answers long does nothing to another: pictures are
known to the weights that they were caught on.

A list of the different pictures that a tenant sent last says how many of them are nearly the one that it sends now. Who
has no weights has to ask hundreds of times about one picture to make it dear; so many near-duplicates are a *stream*.
They are no proof: a camera that does not move sends them too. The guard makes them wait, and no more.

All values are sealed with the deployment's secret and moved to no other tenant; names and fingerprints say nothing of a
picture without it. Without Redis nothing is known and nothing kept: the guard's other layers go on (fail open).
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
import redis.asyncio as aioredis
from redis.exceptions import NoScriptError, ResponseError

from serving.errors import StoreUnavailable
from serving.guard.fingerprints import FINGERPRINT_BYTES, NEAR_AT, similarities
from serving.stores import keys
from serving.stores.connection import RedisConfig, RedisConnection
from serving.stores.scripts import Script
from serving.stores.sealed import Sealer
from serving.telemetry.events import Sink, ignore

Rows = list[tuple[str, bytes]]
"""Ids of pictures, and their fingerprints."""
TTL_S: Final = 7 * 24 * 3600.0
"""How long a picture stays in quarantine after it was caught last."""
STREAM_AT: Final = 25
"""So many near-duplicates among a tenant's last pictures are a stream."""
MAX_QUERIES: Final = 128
MAX_CAUGHT: Final = 256
"""Pictures of a tenant in quarantine; the one that was caught longest ago falls out."""
MAX_LISTED: Final = 10_000
_MAX_AUDITED: Final = 10_000
_ID_BYTES: Final = 16
_ROW_BYTES: Final = _ID_BYTES + FINGERPRINT_BYTES
_MAX_OPENED: Final = 1 << 14
"""Rows that are not opened again: a tenant's last pictures are read with every one of its requests."""

_FORGET: Final = Script("""
if ARGV[2] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[2] then return 0 end
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[3] ~= '' then redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[3]) end
return 1
""")
"""Names: of an entry, the index, the log. Arguments: its id; what it must still be, or ""; the line for the log, or "";
how many lines that keeps. All or nothing: what is released is in the log. Returns whether it was there."""

GUARD: Final = "guard"
"""Who did it, where no operator did."""
CAUGHT: Final = "caught"
RELEASED: Final = "released"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A picture in quarantine. ``id``: 32 hex digits, of its pixels and the model's weights under the secret.
    ``checkpoint``: digest of those weights. ``at_s``, ``until_s``: Unix time. ``score``, ``reasons``: of the verdict.
    ``num_tokens``: of the answer that was ended."""

    id: str
    tenant: str
    model: str
    checkpoint: str
    at_s: float
    until_s: float
    score: float
    reasons: tuple[str, ...]
    num_tokens: int
    request_id: str = ""
    fingerprint: bytes = b""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the audit log. ``action``: ``caught`` or ``released``; ``tenant``: whose picture."""

    at_s: float
    actor: str
    action: str
    entry_id: str
    tenant: str
    reasons: tuple[str, ...] = ()


class Seen(NamedTuple):
    """What is known of a picture. ``entry_id``: what it repeats; None for nothing. ``is_exact``: to the pixel.
    ``num_near``: other pictures that look like it, among those that the tenant sent last."""

    entry_id: str | None = None
    is_exact: bool = False
    num_near: int = 0

    @property
    def is_replay(self) -> bool:
        """Whether it was caught before."""
        return self.entry_id is not None

    @property
    def is_stream(self) -> bool:
        """Whether the tenant asks about one picture again and again, each time changed a little."""
        return self.num_near >= STREAM_AT


class Quarantine:
    """Use from one event loop; ``stop`` when done. ``look`` and ``put`` raise nothing and wait no longer than a call of
    Redis may; the others raise ``StoreUnavailable`` when it is away."""

    def __init__(
        self,
        config: RedisConfig,
        secret: bytes,
        *,
        ttl_s: float = TTL_S,
        tell: Sink = ignore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = RedisConnection(config, tell)
        self._id_key = hmac.digest(secret, b"vireo guarded picture", "sha256")
        self._owner = hmac.digest(secret, b"vireo name of guard", "sha256").hex()[:16]
        self._index, self._log = keys.guard(self._owner)
        self._entries = Sealer(secret, "guard entry")
        self._rows = Sealer(secret, "guard row")
        self._events = Sealer(secret, "guard event")
        self._open_row = lru_cache(_MAX_OPENED)(self._rows.open)
        self._ttl_s = max(1, round(ttl_s))
        self._clock = clock

    async def stop(self) -> None:
        """Close the connection."""
        await self._connection.stop()

    # -- with every picture ------------------------------------------------------------------------------------------

    async def look(self, tenant: str, digest: bytes, fingerprint: bytes, checkpoint: str) -> Seen:
        """What is known of a picture that a tenant sends, which is remembered as sent, whatever it asks. ``digest``: of
        its canonical pixels (``PreparedImage.content_sha256``); ``checkpoint``: of the model's weights."""
        entry_id, query_id = self._id(digest, checkpoint), self._id(digest)
        try:
            found, caught, queries = await self._found(tenant, entry_id, query_id, fingerprint)
            known = self._opened(entry_id, found)
            num_near = sum(row != query_id for row in _near(fingerprint, queries))
            if known is not None:
                return Seen(entry_id, True, num_near)
            return Seen(await self._still_caught(_near(fingerprint, caught), checkpoint), False, num_near)
        except StoreUnavailable:
            return Seen()

    async def put(
        self,
        tenant: str,
        digest: bytes,
        fingerprint: bytes,
        *,
        model: str,
        checkpoint: str,
        score: float,
        reasons: Sequence[str],
        num_tokens: int,
        request_id: str = "",
    ) -> bool:
        """Quarantine a picture that was confirmed, anew if it was there. Returns whether it was kept."""
        now_s = self._clock()
        entry = Entry(
            id=self._id(digest, checkpoint),
            tenant=tenant,
            model=model,
            checkpoint=checkpoint,
            at_s=now_s,
            until_s=now_s + self._ttl_s,
            score=score,
            reasons=tuple(reasons),
            num_tokens=num_tokens,
            request_id=request_id,
            fingerprint=fingerprint,
        )
        try:
            await self._write(entry)
        except StoreUnavailable:
            return False
        return True

    async def _found(
        self, tenant: str, entry_id: str, query_id: str, fingerprint: bytes
    ) -> tuple[bytes | None, Rows, Rows]:
        """The entry of this id, and the rows of what the tenant was caught with and of what it sent last."""
        caught, queries = keys.guard_caught(tenant), keys.guard_queries(tenant)
        row = self._row(queries, query_id, fingerprint)

        async def send(client: aioredis.Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as line:
                line.get(keys.guard_entry(self._owner, entry_id))
                line.lrange(caught, 0, MAX_CAUGHT - 1)
                line.lrange(queries, 0, MAX_QUERIES - 1)
                line.lrem(queries, 0, row)  # type: ignore[arg-type]  # bytes are values too
                line.lpush(queries, row)
                line.ltrim(queries, 0, MAX_QUERIES - 1)
                line.expire(queries, keys.QUERIES_TTL_S)
                return [_answered(each) for each in await line.execute(raise_on_error=False)]

        found, its_caught, its_queries, *_ = await self._connection.call("guard.look", send, tenant)
        return found, self._opened_rows(caught, its_caught or ()), self._opened_rows(queries, its_queries or ())

    async def _still_caught(self, entry_ids: Sequence[str], checkpoint: str) -> str | None:
        """The first of these weights that has neither expired nor been released."""
        return next((entry.id for entry in await self._read(entry_ids) if entry.checkpoint == checkpoint), None)

    async def _write(self, entry: Entry) -> None:
        caught = keys.guard_caught(entry.tenant)
        row = self._row(caught, entry.id, entry.fingerprint)
        event = Event(
            at_s=entry.at_s,
            actor=GUARD,
            action=CAUGHT,
            entry_id=entry.id,
            tenant=entry.tenant,
            reasons=entry.reasons,
        )

        async def send(client: aioredis.Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as line:
                line.set(keys.guard_entry(self._owner, entry.id), self._sealed(entry), ex=self._ttl_s)
                line.zremrangebyscore(self._index, "-inf", entry.at_s)
                line.zadd(self._index, {entry.id: entry.until_s})
                line.zremrangebyrank(self._index, 0, -MAX_LISTED - 1)
                line.xadd(self._log, self._logged(event), maxlen=_MAX_AUDITED)
                line.lrem(caught, 0, row)  # type: ignore[arg-type]
                line.lpush(caught, row)
                line.expire(caught, self._ttl_s)
                line.lrange(caught, MAX_CAUGHT, -1)
                line.ltrim(caught, 0, MAX_CAUGHT - 1)
                return list(await line.execute())

        *_, fallen, _ = await self._connection.call("guard.put", send, entry.tenant)
        await self._let_go([entry_id for entry_id, _ in self._opened_rows(caught, fallen)], entry.tenant)

    # -- operators ---------------------------------------------------------------------------------------------------

    async def entries(self, num: int = MAX_LISTED) -> list[Entry]:
        """What is in quarantine; what was caught last comes first."""

        async def send(client: aioredis.Redis) -> list[Any]:
            return list(await client.zrange(self._index, 0, num - 1, desc=True))

        found = await self._connection.call("guard.list", send)
        return await self._read([entry_id.decode("ascii", "replace") for entry_id in found])

    async def release(self, entry: Entry, actor: str) -> bool:
        """Forget a picture, for all tenants, and say who did. False: it was not there any more. Caught again, it is
        quarantined again."""
        caught = keys.guard_caught(entry.tenant)
        row = self._row(caught, entry.id, entry.fingerprint)
        event = Event(at_s=self._clock(), actor=actor, action=RELEASED, entry_id=entry.id, tenant=entry.tenant)

        async def drop(client: aioredis.Redis) -> None:
            await client.lrem(caught, 0, row)  # type: ignore[arg-type]

        if not await self._run("forget", _FORGET, entry.id, b"", self._logged(event)["event"], _MAX_AUDITED):
            return False
        await self._connection.call("guard.release", drop)
        return True

    async def audit(self, num: int) -> list[Event]:
        """What was done last, newest first. What somebody else wrote among it is passed over."""

        async def send(client: aioredis.Redis) -> Any:
            return await client.xrevrange(self._log, count=num)

        found = []
        for _, fields in await self._connection.call("guard.audit", send):
            raw = self._events.open(self._log, fields.get(b"event", b""))
            if raw is not None:
                found.append(msgspec.msgpack.decode(raw, type=Event))
        return found

    async def _read(self, entry_ids: Sequence[str]) -> list[Entry]:
        """Those that are there, in this order."""
        if not entry_ids:
            return []

        opened = map(self._opened, entry_ids, await self._read_sealed(entry_ids))
        return [entry for entry in opened if entry is not None]

    async def _read_sealed(self, entry_ids: Sequence[str]) -> list[bytes | None]:
        async def send(client: aioredis.Redis) -> list[Any]:
            return list(await client.mget([keys.guard_entry(self._owner, entry_id) for entry_id in entry_ids]))

        return await self._connection.call("guard.read", send)

    async def _let_go(self, entry_ids: Sequence[str], tenant: str) -> None:
        """Forget what falls out of a tenant's list, and not what another one was caught with since."""
        for entry_id, sealed in zip(entry_ids, await self._read_sealed(entry_ids) if entry_ids else (), strict=True):
            entry = self._opened(entry_id, sealed)
            if sealed is not None and entry is not None and entry.tenant == tenant:
                await self._run("forget", _FORGET, entry_id, sealed, b"", _MAX_AUDITED)

    async def _run(self, operation: str, script: Script, entry_id: str, *arguments: bytes | int) -> int:
        names = [keys.guard_entry(self._owner, entry_id), self._index, self._log]

        async def send(client: aioredis.Redis) -> int:
            given: list[Any] = [*names, entry_id, *arguments]
            try:
                return int(await client.evalsha(script.sha1, len(names), *given))
            except NoScriptError:
                return int(await client.eval(script.source, len(names), *given))

        return await self._connection.call(f"guard.{operation}", send)

    # -- sealing -----------------------------------------------------------------------------------------------------

    def _id(self, digest: bytes, checkpoint: str = "") -> str:
        return hmac.digest(self._id_key, checkpoint.encode() + b"\0" + digest, "sha256").hex()[: 2 * _ID_BYTES]

    def _sealed(self, entry: Entry) -> bytes:
        return self._entries.seal(keys.guard_entry(self._owner, entry.id), msgspec.msgpack.encode(entry))

    def _opened(self, entry_id: str, sealed: bytes | None) -> Entry | None:
        """None too for what is not ours, and for what another version wrote."""
        raw = None if sealed is None else self._entries.open(keys.guard_entry(self._owner, entry_id), sealed)
        try:
            return None if raw is None else msgspec.msgpack.decode(raw, type=Entry)
        except msgspec.DecodeError:
            return None

    def _logged(self, event: Event) -> dict[Any, Any]:
        return {"event": self._events.seal(self._log, msgspec.msgpack.encode(event))}

    def _row(self, name: str, entry_id: str, fingerprint: bytes) -> bytes:
        return self._rows.seal(name, bytes.fromhex(entry_id) + fingerprint)

    def _opened_rows(self, name: str, rows: Sequence[bytes]) -> Rows:
        """Ids and fingerprints; what is not ours is passed over."""
        opened = [self._open_row(name, row) for row in rows]
        return [
            (raw[:_ID_BYTES].hex(), raw[_ID_BYTES:]) for raw in opened if raw is not None and len(raw) == _ROW_BYTES
        ]


def _answered(answer: Any) -> Any:
    """What is full cannot remember, and what somebody put another kind of value into says nothing; the rest counts."""
    return None if isinstance(answer, ResponseError) else answer


def _near(fingerprint: bytes, rows: Rows) -> list[str]:
    """Ids of those that look like it, the most like first."""
    alike = similarities(fingerprint, b"".join(its for _, its in rows))
    order = sorted((place for place in range(len(rows)) if alike[place] >= NEAR_AT), key=lambda place: -alike[place])
    return [rows[place][0] for place in order]
