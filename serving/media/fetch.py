"""Images from https URLs, fetched so that a URL cannot be turned against us. The rules and threats: docs/media.md.

fetch(url)  check the URL against the list                      serving/media/urls.py
            -> resolve its host, once; every address public     serving/media/addresses.py
            -> connect to a checked address, TLS for the name   serving/media/https_get.py
            -> redirect: all of it again, at most 3 times
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from schedulers.fair_queue import EQUAL, Weights
from serving.errors import DeadlineExceeded, ImageFetchFailed, ImageUrlRefused, QueueFull, ServingError
from serving.fair_slots import FairSlots, SlotTurn
from serving.media.addresses import Address, AddressPolicy, Resolver, SystemResolver, is_public, parse_address
from serving.media.hosts import AllowedHosts
from serving.media.https_get import REMEDY, Connector, Redirect, Streams, connect_tls, default_tls, get
from serving.media.limits import MediaBudget
from serving.media.pool import NOBODY, Caller
from serving.media.urls import Target, absolute, check_url
from serving.telemetry.events import ImageFetched, Sink, ignore

_MAX_ADDRESSES_TRIED = 3
_USUAL_S = 0.2
"""What a fetch is taken to last until it is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds on one fetch, and on all of a process together.

    ``timeout_s`` covers a whole fetch, waiting and redirects included; ``connect_timeout_s`` TCP and TLS to one
    address. ``max_concurrent`` fetches run, ``max_waiting`` wait.

    Raises:
        ValueError: a bound is not positive and finite; ``max_redirects`` and ``max_waiting`` may be 0.
    """

    max_bytes: int = 20 << 20
    max_header_bytes: int = 16 << 10
    timeout_s: float = 10.0
    connect_timeout_s: float = 3.0
    max_redirects: int = 3
    max_concurrent: int = 16
    max_waiting: int = 256

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            lowest = 0 if name in ("max_redirects", "max_waiting") else 1e-3
            if not math.isfinite(value) or value < lowest:
                raise ValueError(f"{name} is {value}; it must be a finite number of at least {lowest:g}")


class ImageFetcher:
    """Fetches images for one process. Use from one event loop; ``stop`` it at the end.

    ``allowed_hosts``: rules of ``serving.media.hosts``; empty refuses every URL. The other arguments are for tests and
    for sites with certificate authorities of their own.

    Raises:
        ValueError: a rule of ``allowed_hosts`` is malformed.
    """

    def __init__(
        self,
        allowed_hosts: Iterable[str],
        limits: FetchLimits,
        *,
        resolver: Resolver | None = None,
        is_allowed_address: AddressPolicy = is_public,
        connector: Connector = connect_tls,
        tls: ssl.SSLContext | None = None,
        tell: Sink = ignore,
        weights: Weights = EQUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts = AllowedHosts(allowed_hosts)
        self._limits = limits
        self._own_resolver: SystemResolver | None = None
        if resolver is None:
            resolver = self._own_resolver = SystemResolver()
        self._resolve: Resolver = resolver
        self._is_allowed_address = is_allowed_address
        self._connect = connector
        self._tls = tls
        self._tell = tell
        self._clock = clock
        self._slots = FairSlots(limits.max_concurrent, limits.max_waiting, weights=weights)

    async def stop(self) -> None:
        """Free the resolver's threads. Fetches in flight end by themselves, within their timeout."""
        if self._own_resolver is not None:
            self._own_resolver.close()

    async def fetch(
        self,
        url: str,
        deadline_s: float = math.inf,
        budget: MediaBudget | None = None,
        caller: Caller = NOBODY,
    ) -> bytes:
        """Fetch an encoded image. Nothing about the bytes is checked but their number.

        ``deadline_s`` is on the monotonic clock. ``budget`` is charged while the body is read. Tenants share the
        fetches that run by the seconds that theirs take.

        Raises:
            ImageUrlRefused: this URL, or the one it redirects to, may not be fetched.
            ImageFetchFailed: the host is not there, too slow, or answers with something else.
            UnsupportedMediaType, ImageTooLarge, PayloadTooLarge: not declared as an image, or over a limit.
            QueueFull: too many URLs wait already.
            DeadlineExceeded: ``deadline_s`` passed.
        """
        started_s = self._clock()
        try:
            data = await self._fetch_in_time(check_url(self._hosts, url), deadline_s - started_s, budget, caller)
        except ServingError as error:
            self._tell(ImageFetched(error.code, 0, self._clock() - started_s))
            raise
        self._tell(ImageFetched("ok", len(data), self._clock() - started_s))
        return data

    async def _fetch_in_time(
        self, target: Target, remaining_s: float, budget: MediaBudget | None, caller: Caller
    ) -> bytes:
        try:
            async with asyncio.timeout(max(0.0, min(self._limits.timeout_s, remaining_s))), self._slot(caller):
                return await self._follow(target, budget)
        except TimeoutError:
            if remaining_s < self._limits.timeout_s:
                raise DeadlineExceeded("the deadline passed while an image URL was fetched; allow more time") from None
            raise ImageFetchFailed(
                f"fetching the image URL took longer than {self._limits.timeout_s:g} s, the limit. {REMEDY}"
            ) from None

    @contextlib.asynccontextmanager
    async def _slot(self, caller: Caller) -> AsyncIterator[None]:
        turn = SlotTurn(caller.tenant, caller.rank, _USUAL_S)
        if not await self._slots.acquire(turn):
            raise QueueFull(
                f"{self._limits.max_waiting} image URLs wait to be fetched, the limit; retry later", retry_after_s=1.0
            )
        started_s = self._clock()
        try:
            yield
        finally:
            self._slots.release(turn, self._clock() - started_s)

    async def _follow(self, target: Target, budget: MediaBudget | None) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            answer = await self._get(target, budget)
            if isinstance(answer, bytes):
                return answer
            target = check_url(self._hosts, absolute(target, answer.location))
        raise ImageFetchFailed(
            f"the image URL is redirected more than {self._limits.max_redirects} times, the limit. Send the last URL"
        )

    async def _get(self, target: Target, budget: MediaBudget | None) -> bytes | Redirect:
        streams = await self._connect_to_any(target, await self._addresses(target))
        charge = budget.add_bytes if budget is not None else _charge_nobody
        try:
            return await get(streams, target, self._limits.max_header_bytes, self._limits.max_bytes, charge)
        except OSError:
            raise ImageFetchFailed("the host of the image URL broke the connection. " + REMEDY) from None

    async def _addresses(self, target: Target) -> list[Address]:
        """Ask once; what is connected to is what was checked."""
        try:
            found = [parse_address(text) for text in await self._resolve(target.host, target.port)]
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise ImageFetchFailed("the host of the image URL was not found. " + REMEDY)
        public = [address for address in found if address is not None and self._is_allowed_address(address)]
        if len(public) != len(found):
            raise ImageUrlRefused(
                "the host of the image URL has an address that is not public. Send the image as a data: URL"
            )
        return public

    async def _connect_to_any(self, target: Target, addresses: list[Address]) -> Streams:
        self._tls = self._tls or default_tls()
        for address in addresses[:_MAX_ADDRESSES_TRIED]:
            try:
                async with asyncio.timeout(self._limits.connect_timeout_s):
                    return await self._connect(str(address), target.port, target.host, self._tls)
            except ssl.SSLCertVerificationError:
                raise ImageFetchFailed("the host of the image URL has no valid certificate for its name") from None
            except (OSError, ValueError):  # TimeoutError is one; a name that TLS cannot encode is the other
                continue
        raise ImageFetchFailed("the host of the image URL cannot be connected to. " + REMEDY)


def _charge_nobody(num_bytes: int) -> None:
    pass
