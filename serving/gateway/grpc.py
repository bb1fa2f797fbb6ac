"""Every RPC, as methods named like the RPCs: Ray Serve finds them by name on the gateway's deployment class."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from vireo_pb.vireo.v1 import vireo_pb2

from serving.front.auth import Authenticator
from serving.front.front import Front
from serving.front.grpc.call import Door, GrpcCall, GrpcContext
from serving.front.grpc.health import Health
from serving.front.grpc.messages import RawRequests, Reader
from serving.front.grpc.registration import HEALTH, SERVICES, VIREO
from serving.front.grpc.rpc import Rpc, small
from serving.limits import IngressLimits
from serving.service import Service
from serving.tasks.budgets import budget_message, shown_budget
from serving.tasks.table import TASKS
from serving.telemetry.events import Sink, ignore


class GrpcMethods:
    """Mix into the gateway's class and call ``__init__`` from its own.

    Unknown methods are answered by HAProxy (``serving.system.haproxy_grpc``).
    """

    def __init__(
        self,
        *,
        service: Service,
        authenticator: Authenticator,
        limits: IngressLimits,
        tell: Sink = ignore,
    ) -> None:
        front = Front(service=service, authenticator=authenticator, limits=limits, tell=tell)
        self.door = Door(front, Health(service), {rpc.method.full_name: rpc.reader(limits) for rpc in RPCS})
        self._reflection = reflection.aio.ReflectionServicer(  # type: ignore[attr-defined]
            service.full_name for service in SERVICES
        )
        self._reflection_reader = Reader(reflection_pb2.ServerReflectionRequest, small(limits), limits)

    def end_watches(self) -> None:
        """Tell every ``Watch`` stream that this replica stops, and end it; they would hold up a graceful shutdown."""
        self.door.health.stop()

    async def ServerReflectionInfo(
        self, requests: RawRequests, grpc_context: GrpcContext
    ) -> AsyncGenerator[reflection_pb2.ServerReflectionResponse, None]:
        """``ServerReflectionInfo`` of ``grpc.reflection.v1`` and ``v1alpha``. Needs no key.

        Ray's own is not used: it parses whatever comes.
        """
        call = self.door.begin(grpc_context)
        try:
            with self.door.keyless():
                asked = self._reflection_reader.each(requests)
                async with aclosing(self._reflection.ServerReflectionInfo(asked, None)) as responses:
                    async for response in responses:
                        yield response
        except Exception as error:
            call.fail(error)


async def _check(call: GrpcCall, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
    return call.door.health.check(request.service)


def _watch(
    call: GrpcCall, request: health_pb2.HealthCheckRequest
) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
    return call.door.health.watch(request.service)


async def _budget(call: GrpcCall, _request: vireo_pb2.GetBudgetRequest) -> vireo_pb2.TenantBudget:
    tenant = call.tenant
    return budget_message(shown_budget(tenant, await call.front.service.accounts.account(tenant)))


RPCS: Final = (
    *(rpc for task in TASKS if task.rpcs is not None for rpc in task.rpcs.load()),
    Rpc(method=VIREO.methods_by_name["GetBudget"], answer=_budget),
    Rpc(method=HEALTH.methods_by_name["Check"], answer=_check),
    Rpc(method=HEALTH.methods_by_name["Watch"], answer=_watch),
)

for _rpc in RPCS:
    setattr(GrpcMethods, _rpc.method.name, _rpc.as_method())
