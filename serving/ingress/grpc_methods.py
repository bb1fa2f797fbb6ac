"""Every RPC, as methods named like the RPCs: Ray Serve finds them by name on the gateway's deployment class."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Surface
from serving.errors import ServingError
from serving.ingress.auth import Authenticator
from serving.ingress.chat_grpc import ChatMethods
from serving.ingress.front import Front, Visit
from serving.ingress.grpc_call import GrpcCall, GrpcContext
from serving.ingress.grpc_health import Health
from serving.ingress.grpc_stream import answer_stream
from serving.ingress.observer import IngressObserver, NullObserver
from serving.ingress.oip_grpc import infer_from_reply, request_from_infer
from serving.ingress.oip_http import EXTENSIONS, SERVER_NAME, model_metadata
from serving.ingress.openapi import vireo_version
from serving.ingress.schemas import MAX_ID_CHARS
from serving.ingress.status import message_of
from serving.ingress.video_grpc import VideoMethods
from serving.ingress.vireo_wire import message_from_error, message_from_reply, request_from_message
from serving.limits import IngressLimits
from serving.service import Service

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class GrpcMethods(ChatMethods, VideoMethods):
    """Mix into the gateway's class and call ``__init__`` from its own.

    Server reflection and unknown methods are answered by the gRPC server itself.
    """

    def __init__(
        self,
        *,
        service: Service,
        authenticator: Authenticator,
        limits: IngressLimits,
        observer: IngressObserver | None = None,
    ) -> None:
        self._grpc_front = Front(
            service=service, authenticator=authenticator, limits=limits, observer=observer or NullObserver()
        )
        self._grpc_health = Health(service)

    def end_watches(self) -> None:
        """Tell every ``Watch`` stream that this replica stops, and end it; they would hold up a graceful shutdown."""
        self._grpc_health.stop()

    # vireo.v1

    async def Classify(
        self, request: vireo_pb2.ClassifyRequest, grpc_context: GrpcContext
    ) -> vireo_pb2.ClassifyResponse:
        """``vireo.v1.Vireo/Classify``."""

        async def work(call: GrpcCall, visit: Visit) -> vireo_pb2.ClassifyResponse:
            return await self._classify(request, call, visit)

        return await self._inference(grpc_context, Surface.GRPC_VIREO, work, vireo_pb2.ClassifyResponse())

    async def ClassifyStream(
        self, request_stream: AsyncIterable[vireo_pb2.ClassifyRequest], grpc_context: GrpcContext
    ) -> AsyncGenerator[vireo_pb2.ClassifyResponse, None]:
        """``vireo.v1.Vireo/ClassifyStream``: a bad request is answered in the stream, which goes on."""

        async def answer(call: GrpcCall, request: vireo_pb2.ClassifyRequest) -> vireo_pb2.ClassifyResponse:
            visit = self._begin(call, Surface.GRPC_VIREO_STREAM)
            try:
                return await self._classify(request, call, visit)
            except Exception as error:
                known = self._outcome(call, visit, error)
                return vireo_pb2.ClassifyResponse(id=request.id[:MAX_ID_CHARS], error=message_from_error(known))
            finally:
                self._grpc_front.end(visit)

        async with aclosing(self._stream(request_stream, grpc_context, answer)) as responses:
            async for response in responses:
                yield response

    async def _classify(
        self, request: vireo_pb2.ClassifyRequest, call: GrpcCall, visit: Visit
    ) -> vireo_pb2.ClassifyResponse:
        domain_request = request_from_message(
            request,
            surface=visit.surface,
            request_id=call.request_id,
            tenant=call.tenant,
            deadline_s=call.deadline_s(),
            limits=self._grpc_front.limits,
        )
        return message_from_reply(await self._grpc_front.classify(domain_request, visit), request.id)

    # inference

    async def ModelInfer(self, request: oip.ModelInferRequest, grpc_context: GrpcContext) -> oip.ModelInferResponse:
        """``inference.GRPCInferenceService/ModelInfer``."""

        async def work(call: GrpcCall, visit: Visit) -> oip.ModelInferResponse:
            return await self._infer(request, call, visit)

        return await self._inference(grpc_context, Surface.GRPC_OIP, work, oip.ModelInferResponse())

    async def ModelStreamInfer(
        self, request_stream: AsyncIterable[oip.ModelInferRequest], grpc_context: GrpcContext
    ) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
        """``inference.GRPCInferenceService/ModelStreamInfer``: an error ends its own request, not the stream."""

        async def answer(call: GrpcCall, request: oip.ModelInferRequest) -> oip.ModelStreamInferResponse:
            visit = self._begin(call, Surface.GRPC_OIP)
            try:
                return oip.ModelStreamInferResponse(infer_response=await self._infer(request, call, visit))
            except Exception as error:
                known = self._outcome(call, visit, error)
                return oip.ModelStreamInferResponse(
                    error_message=f"[{known.code}] {message_of(known)}",
                    infer_response=oip.ModelInferResponse(id=request.id[:MAX_ID_CHARS]),
                )
            finally:
                self._grpc_front.end(visit)

        async with aclosing(self._stream(request_stream, grpc_context, answer)) as responses:
            async for response in responses:
                yield response

    async def _infer(self, request: oip.ModelInferRequest, call: GrpcCall, visit: Visit) -> oip.ModelInferResponse:
        card = self._grpc_front.card(request.model_name, request.model_version)
        visit.model = card.id
        domain_request = await request_from_infer(
            request,
            model=card.id,
            request_id=call.request_id,
            tenant=call.tenant,
            deadline_s=call.deadline_s(),
            limits=self._grpc_front.limits,
        )
        return infer_from_reply(request, await self._grpc_front.classify(domain_request, visit))

    async def ServerLive(self, request: oip.ServerLiveRequest, grpc_context: GrpcContext) -> oip.ServerLiveResponse:
        """``inference.GRPCInferenceService/ServerLive``. Needs no key."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, grpc_context: GrpcContext) -> oip.ServerReadyResponse:
        """``inference.GRPCInferenceService/ServerReady``. Needs no key."""
        return oip.ServerReadyResponse(ready=self._grpc_front.service.is_ready())

    async def ModelReady(self, request: oip.ModelReadyRequest, grpc_context: GrpcContext) -> oip.ModelReadyResponse:
        """``inference.GRPCInferenceService/ModelReady``."""

        def work() -> oip.ModelReadyResponse:
            model = self._grpc_front.served(request.name, request.version)
            return oip.ModelReadyResponse(ready=self._grpc_front.service.is_model_ready(model))

        return self._lookup(grpc_context, work, oip.ModelReadyResponse())

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, grpc_context: GrpcContext
    ) -> oip.ServerMetadataResponse:
        """``inference.GRPCInferenceService/ServerMetadata``."""

        def work() -> oip.ServerMetadataResponse:
            return oip.ServerMetadataResponse(name=SERVER_NAME, version=vireo_version(), extensions=EXTENSIONS)

        return self._lookup(grpc_context, work, oip.ServerMetadataResponse())

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, grpc_context: GrpcContext
    ) -> oip.ModelMetadataResponse:
        """``inference.GRPCInferenceService/ModelMetadata``."""

        def work() -> oip.ModelMetadataResponse:
            return oip.ModelMetadataResponse(**model_metadata(self._grpc_front.card(request.name, request.version)))

        return self._lookup(grpc_context, work, oip.ModelMetadataResponse())

    # grpc.health.v1

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: GrpcContext
    ) -> health_pb2.HealthCheckResponse:
        """``grpc.health.v1.Health/Check``. Needs no key."""
        try:
            return self._grpc_health.check(request.service)
        except ServingError as error:
            GrpcCall(grpc_context).fail(error)
            return health_pb2.HealthCheckResponse()

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: GrpcContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """``grpc.health.v1.Health/Watch``: the state now, and again whenever it changes. Needs no key."""
        try:
            async with aclosing(self._grpc_health.watch(request.service)) as responses:
                async for response in responses:
                    yield response
        except ServingError as error:
            GrpcCall(grpc_context).fail(error)

    # shared

    async def _inference(
        self,
        grpc_context: GrpcContext,
        surface: Surface,
        work: Callable[[GrpcCall, Visit], Awaitable[Response]],
        empty: Response,
    ) -> Response:
        """Run a unary inference; on failure set the status and return ``empty``."""
        call = GrpcCall(grpc_context)
        visit = self._begin(call, surface)
        try:
            call.authenticate(self._grpc_front)
            visit.tenant = call.tenant
            return await work(call, visit)
        except Exception as error:
            call.fail(self._outcome(call, visit, error))
            return empty
        finally:
            self._grpc_front.end(visit)

    def _lookup(self, grpc_context: GrpcContext, work: Callable[[], Response], empty: Response) -> Response:
        """Run a unary call that only looks something up, for a caller with a key."""
        call = GrpcCall(grpc_context)
        try:
            call.authenticate(self._grpc_front)
            return work()
        except Exception as error:
            call.fail(call.known(error))
            return empty

    async def _stream(
        self,
        requests: AsyncIterable[Request],
        grpc_context: GrpcContext,
        answer: Callable[[GrpcCall, Request], Awaitable[Response]],
    ) -> AsyncGenerator[Response, None]:
        call = GrpcCall(grpc_context)
        try:
            call.authenticate(self._grpc_front)
        except Exception as error:
            call.fail(call.known(error))
            return
        limit = self._grpc_front.limits.max_stream_in_flight
        async with aclosing(answer_stream(requests, lambda request: answer(call, request), limit)) as responses:
            async for response in responses:
                yield response

    def _begin(self, call: GrpcCall, surface: Surface) -> Visit:
        visit = self._grpc_front.begin(surface)
        visit.tenant = call.tenant
        return visit

    def _outcome(self, call: GrpcCall, visit: Visit, error: Exception) -> ServingError:
        known = call.known(error)
        visit.outcome = known.code
        return known
