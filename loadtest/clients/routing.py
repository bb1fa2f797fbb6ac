"""One client that hands each payload to the client of its surface, so that one run can mix surfaces."""

from __future__ import annotations

from collections.abc import Mapping

from loadtest.clients.base import Client, Payload, Prepared, Reply


class SurfaceRouter:
    """Routes by ``Payload.surface``."""

    def __init__(self, clients: Mapping[str, Client]) -> None:
        self._clients = dict(clients)

    async def start(self) -> None:
        """Start all clients. Raises: TargetError: if one of them cannot start."""
        for client in self._clients.values():
            await client.start()

    def prepare(self, payload: Payload) -> Prepared:
        """As the surface's client does. Raises: ValueError: if no client serves that surface."""
        return self._client_of(payload).prepare(payload)

    async def send(self, prepared: Prepared) -> Reply:
        """As the surface's client does."""
        return await self._client_of(prepared.payload).send(prepared)

    async def close(self) -> None:
        """Close all clients."""
        for client in self._clients.values():
            await client.close()

    def _client_of(self, payload: Payload) -> Client:
        try:
            return self._clients[payload.surface]
        except KeyError:
            known = ", ".join(sorted(self._clients))
            raise ValueError(f"no client for surface {payload.surface!r}; there are: {known}") from None
