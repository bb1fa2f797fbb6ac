"""``grpc.health.v1``. Source: the gRPC health checking protocol (grpc/grpc, doc/health-checking.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from grpc_health.v1 import health_pb2

from serving.errors import QueueFull, UnknownService
from serving.front.front import shown
from serving.service import Service

OIP: Final = "inference.GRPCInferenceService"
SERVICES: Final = ("", "vireo.v1.Vireo", OIP)
POLL_S = 0.5
"""How late a ``Watch`` may tell of a change."""
MAX_WATCHES = 64
"""``Watch`` streams of one replica. They need no key and never end, and each holds a slot of the replica."""

_Response = health_pb2.HealthCheckResponse


class Health:
    """Answers for this server and its services. One per replica.

    The Open Inference Protocol leads to models of rows and is ready when one of them is; all else when any model is.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._num_watches = 0
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """End the watches: each tells NOT_SERVING first."""
        self._stopped.set()

    def check(self, name: str) -> health_pb2.HealthCheckResponse:
        """Return the state of a service. Raises: UnknownService."""
        if name not in SERVICES:
            known = ", ".join(repr(service) for service in SERVICES)
            raise UnknownService(f"service {shown(name)} is unknown; known: {known}", param="service")
        return _Response(status=self._status(name))

    async def watch(self, name: str) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """Yield the state now and whenever it changes; SERVICE_UNKNOWN for a name that is not served.

        Raises: QueueFull: too many watches.
        """
        if self._num_watches >= MAX_WATCHES:
            raise QueueFull(
                f"{MAX_WATCHES} Watch streams are open on this replica, the limit; poll with Check", retry_after_s=30.0
            )
        self._num_watches += 1
        try:
            last = None
            while not self._stopped.is_set():
                if (status := self._status(name)) != last:
                    last = status
                    yield _Response(status=status)
                await self._wait()
            if last == _Response.SERVING:
                yield _Response(status=_Response.NOT_SERVING)
        finally:
            self._num_watches -= 1

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name not in SERVICES:
            return _Response.SERVICE_UNKNOWN
        serving = self._service.is_ready() and not self._stopped.is_set()
        if name == OIP and (cards := self._service.unary.models()):
            serving = serving and any(self._service.is_model_ready(card.id) for card in cards)
        return _Response.SERVING if serving else _Response.NOT_SERVING

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):
                await self._stopped.wait()
        except TimeoutError:
            pass
