"""How our services are put on a gRPC server: with handlers that receive nothing by themselves.

Generated code has gRPC receive and parse the message of a unary call before any code of ours runs: whoever has no key
has then already spent the server's memory and time. Here every method is registered as one whose requests are a stream
(on the wire there is no difference) of bytes (no deserialiser): a handler is called with the metadata alone, and a
message is received, from then on, when it asks for it. Until then the transport holds no more of it than a window.

Ray Serve calls these functions, by the names in ``serving.app.GRPC_SERVICERS``, and puts its own handlers in the place
of the servicer's; it keeps what is said here about streams and serialisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from vireo_pb.oip import open_inference_pb2
from vireo_pb.vireo.v1 import vireo_pb2

AddToServer: TypeAlias = Callable[[Any, grpc.aio.Server], None]

VIREO: Final[ServiceDescriptor] = vireo_pb2.DESCRIPTOR.services_by_name["Vireo"]
INFERENCE: Final[ServiceDescriptor] = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH: Final[ServiceDescriptor] = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION: Final[ServiceDescriptor] = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


def _reflection_v1() -> ServiceDescriptor:
    """What clients ask for before ``v1alpha``, which is the same under another name. PyPI has no stubs of it."""
    file, pool = FileDescriptorProto(), descriptor_pool.Default()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    renamed = Parse(MessageToJson(file).replace("v1alpha", "v1"), FileDescriptorProto())
    pool.AddSerializedFile(renamed.SerializeToString())
    return pool.FindServiceByName("grpc.reflection.v1.ServerReflection")


REFLECTION_V1: Final = _reflection_v1()
SERVICES: Final = (VIREO, INFERENCE, HEALTH, REFLECTION, REFLECTION_V1)

_NOT_OFFERED: Final = {"grpc.health.v1.Health.List"}
"""Later releases of its stubs have it."""
_KEYLESS: Final = {
    *(method.full_name for service in (HEALTH, REFLECTION, REFLECTION_V1) for method in service.methods),
    "inference.GRPCInferenceService.ServerLive",
    "inference.GRPCInferenceService.ServerReady",
}
_PLAIN_ONLY: Final = ("grpc.compression_enabled_algorithms_bitset", 1)


def methods_of(service: ServiceDescriptor) -> tuple[MethodDescriptor, ...]:
    """The methods that are served."""
    return tuple(method for method in service.methods if method.full_name not in _NOT_OFFERED)


def path_of(method: MethodDescriptor) -> str:
    """The path of a call, as HTTP/2 has it."""
    return f"/{method.containing_service.full_name}/{method.name}"


def is_unary(method: MethodDescriptor) -> bool:
    """Whether the request of a call is one message."""
    return not method.client_streaming


def needs_key(method: MethodDescriptor) -> bool:
    """Whether only callers with an API key may call it, where there are keys."""
    return method.full_name not in _KEYLESS


def _adder(service: ServiceDescriptor) -> AddToServer:
    def add(servicer: Any, server: grpc.aio.Server) -> None:
        handlers = {method.name: _handler(servicer, method) for method in methods_of(service)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    return add


def _handler(servicer: Any, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
    make = grpc.stream_stream_rpc_method_handler if method.server_streaming else grpc.stream_unary_rpc_method_handler
    return make(getattr(servicer, method.name), request_deserializer=None, response_serializer=_serialised)


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()


add_vireo_to_server = _adder(VIREO)
add_inference_to_server = _adder(INFERENCE)
add_health_to_server = _adder(HEALTH)
add_reflection_to_server = _adder(REFLECTION)
add_reflection_v1_to_server = _adder(REFLECTION_V1)


def take_no_compression() -> None:
    """Have the gRPC servers of this process, Ray's, refuse compressed calls by their metadata.

    A thousand bytes of zeros are one byte of gzip, and gRPC expands a message in full before it looks at its length.
    Ray has no setting for it. To be called before servers start, in gateways and in Ray's own proxies.
    """
    from ray.serve._private.constants import DEFAULT_GRPC_SERVER_OPTIONS

    if _PLAIN_ONLY not in DEFAULT_GRPC_SERVER_OPTIONS:
        DEFAULT_GRPC_SERVER_OPTIONS.append(_PLAIN_ONLY)
