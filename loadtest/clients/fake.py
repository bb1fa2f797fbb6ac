"""A client without a server, for tests of whatever uses a client.

Its answers follow a plan instead of a network, so that under a virtual clock every figure of a run is known in advance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loadtest.clients.base import Payload, Prepared, Reply
from loadtest.records import Outcome


class FakeClient:
    """Answers call number k after ``service_s(k)`` seconds with ``outcome(k)``, on the running loop's time.

    ``num_servers`` calls are served at once, in the order of their coming; the others wait. ``None`` means that nobody
    ever waits.
    """

    def __init__(
        self,
        service_s: Callable[[int], float],
        *,
        outcome: Callable[[int], Outcome] = lambda _: Outcome.OK,
        num_servers: int | None = None,
    ) -> None:
        self._service_s = service_s
        self._outcome = outcome
        self._slots = None if num_servers is None else asyncio.Semaphore(num_servers)
        self._num_calls = 0
        self.sent: list[Payload] = []
        self.is_started = False
        self.is_closed = False

    async def start(self) -> None:
        """Note that it was called."""
        self.is_started = True

    def prepare(self, payload: Payload) -> Prepared:
        """There is nothing to encode."""
        return Prepared(payload=payload, wire=None, request_bytes=sum(len(image) for image in payload.images))

    async def send(self, prepared: Prepared) -> Reply:
        """Wait as planned, answer as planned."""
        call, self._num_calls = self._num_calls, self._num_calls + 1
        self.sent.append(prepared.payload)
        if self._slots is None:
            await asyncio.sleep(self._service_s(call))
        else:
            async with self._slots:
                await asyncio.sleep(self._service_s(call))
        now_s = asyncio.get_running_loop().time()
        labels = prepared.payload.expected_labels or ()
        return Reply(outcome=self._outcome(call), done_at_s=now_s, first_chunk_at_s=now_s, labels=labels)

    async def close(self) -> None:
        """Note that it was called."""
        self.is_closed = True
