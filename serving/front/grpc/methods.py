"""Every RPC, as methods named like the RPCs: Ray Serve finds them by name on the gateway's deployment class.

Each is called with the metadata of its call and a stream of bytes from which nothing has been received yet
(``grpc_registration``): it authenticates first, and then reads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import Surface
from serving.errors import QueueFull, ServingError
from serving.front.auth import Authenticator
from serving.front.front import Front, Visit
from serving.front.grpc.call import GrpcCall, GrpcContext
from serving.front.grpc.health import Health
from serving.front.grpc.messages import RawRequests, Reader
from serving.front.grpc.registration import SERVICES
from serving.front.grpc.stream import answer_stream
from serving.front.http.openapi import vireo_version
from serving.front.status import message_of
from serving.front.vireo_wire import message_from_error, message_from_reply, request_from_message
from serving.limits import MAX_SMALL_BYTES, IngressLimits
from serving.service import Service
from serving.tasks.chat.grpc import ChatMethods
from serving.tasks.infer.grpc import infer_from_reply, request_from_infer
from serving.tasks.infer.http import EXTENSIONS, SERVER_NAME, model_metadata
from serving.tasks.videos.grpc import VideoMethods
from serving.telemetry.events import Sink, ignore

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

MAX_KEYLESS_CALLS = 64
"""Calls that need no key and whose message is awaited, and streams of reflection, at a time on one replica: each holds
a slot of the replica."""


class GrpcMethods(ChatMethods, VideoMethods):
    """Mix into the gateway's class and call ``__init__`` from its own.

    Unknown methods are answered by the gRPC server itself.
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
        ChatMethods.__init__(self, front)
        VideoMethods.__init__(self, front)
        self._grpc_health = Health(service)
        self._grpc_reflection = reflection.aio.ReflectionServicer(  # type: ignore[attr-defined]
            service.full_name for service in SERVICES
        )
        self._num_keyless = 0

        def small(kind: type[Request]) -> Reader[Request]:
            return Reader(kind, min(MAX_SMALL_BYTES, limits.max_body_bytes), limits)

        self._classify_reader = Reader(vireo_pb2.ClassifyRequest, limits.max_message_bytes(has_pixels=False), limits)
        self._infer_reader = Reader(oip.ModelInferRequest, limits.max_message_bytes(has_pixels=True), limits)
        self._live_reader, self._ready_reader = small(oip.ServerLiveRequest), small(oip.ServerReadyRequest)
        self._model_ready_reader = small(oip.ModelReadyRequest)
        self._server_metadata_reader = small(oip.ServerMetadataRequest)
        self._model_metadata_reader = small(oip.ModelMetadataRequest)
        self._health_reader = small(health_pb2.HealthCheckRequest)
        self._reflection_reader = small(reflection_pb2.ServerReflectionRequest)

    def end_watches(self) -> None:
        """Tell every ``Watch`` stream that this replica stops, and end it; they would hold up a graceful shutdown."""
        self._grpc_health.stop()

    # vireo.v1

    async def Classify(self, requests: RawRequests, grpc_context: GrpcContext) -> vireo_pb2.ClassifyResponse:
        """``vireo.v1.Vireo/Classify``."""

        async def work(call: GrpcCall, visit: Visit) -> vireo_pb2.ClassifyResponse:
            return await self._classify(await self._classify_reader.only(requests), call, visit)

        return await self._inference(grpc_context, Surface.GRPC_VIREO, work, vireo_pb2.ClassifyResponse())

    async def ClassifyStream(
        self, requests: RawRequests, grpc_context: GrpcContext
    ) -> AsyncGenerator[vireo_pb2.ClassifyResponse, None]:
        """``vireo.v1.Vireo/ClassifyStream``: a bad request is answered in the stream, which goes on."""
        reader = self._classify_reader

        async def answer(call: GrpcCall, data: bytes) -> vireo_pb2.ClassifyResponse:
            visit = self._begin(call, Surface.GRPC_VIREO_STREAM)
            try:
                return await self._classify(reader.parse(data), call, visit)
            except Exception as error:
                known = self._outcome(call, visit, error)
                return vireo_pb2.ClassifyResponse(id=reader.id_of(data), error=message_from_error(known))
            finally:
                self._grpc_front.end(visit)

        async with aclosing(self._stream(requests, grpc_context, answer)) as responses:
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

    async def ModelInfer(self, requests: RawRequests, grpc_context: GrpcContext) -> oip.ModelInferResponse:
        """``inference.GRPCInferenceService/ModelInfer``."""

        async def work(call: GrpcCall, visit: Visit) -> oip.ModelInferResponse:
            return await self._infer(await self._infer_reader.only(requests), call, visit)

        return await self._inference(grpc_context, Surface.GRPC_OIP, work, oip.ModelInferResponse())

    async def ModelStreamInfer(
        self, requests: RawRequests, grpc_context: GrpcContext
    ) -> AsyncGenerator[oip.ModelStreamInferResponse, None]:
        """``inference.GRPCInferenceService/ModelStreamInfer``: an error ends its own request, not the stream."""
        reader = self._infer_reader

        async def answer(call: GrpcCall, data: bytes) -> oip.ModelStreamInferResponse:
            visit = self._begin(call, Surface.GRPC_OIP)
            try:
                return oip.ModelStreamInferResponse(infer_response=await self._infer(reader.parse(data), call, visit))
            except Exception as error:
                known = self._outcome(call, visit, error)
                return oip.ModelStreamInferResponse(
                    error_message=f"[{known.code}] {message_of(known)}",
                    infer_response=oip.ModelInferResponse(id=reader.id_of(data)),
                )
            finally:
                self._grpc_front.end(visit)

        async with aclosing(self._stream(requests, grpc_context, answer)) as responses:
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

    async def ServerLive(self, requests: RawRequests, grpc_context: GrpcContext) -> oip.ServerLiveResponse:
        """``inference.GRPCInferenceService/ServerLive``. Needs no key."""

        def work(_request: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
            return oip.ServerLiveResponse(live=True)

        return await self._keyless(requests, grpc_context, self._live_reader, work, oip.ServerLiveResponse())

    async def ServerReady(self, requests: RawRequests, grpc_context: GrpcContext) -> oip.ServerReadyResponse:
        """``inference.GRPCInferenceService/ServerReady``. Needs no key."""

        def work(_request: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
            return oip.ServerReadyResponse(ready=self._grpc_front.service.is_ready())

        return await self._keyless(requests, grpc_context, self._ready_reader, work, oip.ServerReadyResponse())

    async def ModelReady(self, requests: RawRequests, grpc_context: GrpcContext) -> oip.ModelReadyResponse:
        """``inference.GRPCInferenceService/ModelReady``."""

        def work(request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
            model = self._grpc_front.served(request.name, request.version)
            return oip.ModelReadyResponse(ready=self._grpc_front.service.is_model_ready(model))

        return await self._lookup(requests, grpc_context, self._model_ready_reader, work, oip.ModelReadyResponse())

    async def ServerMetadata(self, requests: RawRequests, grpc_context: GrpcContext) -> oip.ServerMetadataResponse:
        """``inference.GRPCInferenceService/ServerMetadata``."""

        def work(_request: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
            return oip.ServerMetadataResponse(name=SERVER_NAME, version=vireo_version(), extensions=EXTENSIONS)

        empty = oip.ServerMetadataResponse()
        return await self._lookup(requests, grpc_context, self._server_metadata_reader, work, empty)

    async def ModelMetadata(self, requests: RawRequests, grpc_context: GrpcContext) -> oip.ModelMetadataResponse:
        """``inference.GRPCInferenceService/ModelMetadata``."""

        def work(request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
            return oip.ModelMetadataResponse(**model_metadata(self._grpc_front.card(request.name, request.version)))

        empty = oip.ModelMetadataResponse()
        return await self._lookup(requests, grpc_context, self._model_metadata_reader, work, empty)

    # grpc.health.v1

    async def Check(self, requests: RawRequests, grpc_context: GrpcContext) -> health_pb2.HealthCheckResponse:
        """``grpc.health.v1.Health/Check``. Needs no key."""

        def work(request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
            return self._grpc_health.check(request.service)

        return await self._keyless(requests, grpc_context, self._health_reader, work, health_pb2.HealthCheckResponse())

    async def Watch(
        self, requests: RawRequests, grpc_context: GrpcContext
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        """``grpc.health.v1.Health/Watch``: the state now, and again whenever it changes. Needs no key."""
        call = GrpcCall(grpc_context)
        try:
            with self._keyless_slot():
                request = await self._health_reader.only(requests)
            async with aclosing(self._grpc_health.watch(request.service)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            call.fail(call.known(error))

    # grpc.reflection.v1alpha

    async def ServerReflectionInfo(
        self, requests: RawRequests, grpc_context: GrpcContext
    ) -> AsyncGenerator[reflection_pb2.ServerReflectionResponse, None]:
        """``grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo``. Needs no key.

        Ray's own is not used: it parses whatever comes.
        """
        call = GrpcCall(grpc_context)
        try:
            with self._keyless_slot():
                asked = self._reflection_reader.each(requests)
                async with aclosing(self._grpc_reflection.ServerReflectionInfo(asked, None)) as responses:
                    async for response in responses:
                        yield response
        except Exception as error:
            call.fail(call.known(error))

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

    async def _lookup(
        self,
        requests: RawRequests,
        grpc_context: GrpcContext,
        reader: Reader[Request],
        work: Callable[[Request], Response],
        empty: Response,
    ) -> Response:
        """Run a unary call that only looks something up, for a caller with a key."""
        call = GrpcCall(grpc_context)
        try:
            call.authenticate(self._grpc_front)
            return work(await reader.only(requests))
        except Exception as error:
            call.fail(call.known(error))
            return empty

    async def _keyless(
        self,
        requests: RawRequests,
        grpc_context: GrpcContext,
        reader: Reader[Request],
        work: Callable[[Request], Response],
        empty: Response,
    ) -> Response:
        """Run a unary call that only looks something up, for anybody."""
        call = GrpcCall(grpc_context)
        try:
            with self._keyless_slot():
                return work(await reader.only(requests))
        except Exception as error:
            call.fail(call.known(error))
            return empty

    @contextmanager
    def _keyless_slot(self) -> Iterator[None]:
        """Count a call of which nobody knows who makes it. Raises: QueueFull."""
        if self._num_keyless >= MAX_KEYLESS_CALLS:
            raise QueueFull(f"{MAX_KEYLESS_CALLS} calls without a key wait for their messages here, the limit; retry")
        self._num_keyless += 1
        try:
            yield
        finally:
            self._num_keyless -= 1

    async def _stream(
        self,
        requests: RawRequests,
        grpc_context: GrpcContext,
        answer: Callable[[GrpcCall, bytes], Awaitable[Response]],
    ) -> AsyncGenerator[Response, None]:
        call = GrpcCall(grpc_context)
        try:
            call.authenticate(self._grpc_front)
        except Exception as error:
            call.fail(call.known(error))
            return
        limits = self._grpc_front.limits
        answers = answer_stream(
            requests, lambda data: answer(call, data), limits.max_stream_in_flight, limits.max_body_bytes
        )
        async with aclosing(answers) as responses:
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
