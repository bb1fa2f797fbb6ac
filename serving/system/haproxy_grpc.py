"""What HAProxy refuses of gRPC by itself, so that no gateway spends anything on it.

Each refusal is a gRPC answer without a message ("trailers only"), with the status, details and trailers that the
gateway would give.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator

from serving.config import ResolvedConfig
from serving.errors import (
    InvalidRequest,
    PayloadTooLarge,
    ServingError,
    UnknownPath,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from serving.front.auth import missing_key
from serving.front.grpc.registration import SERVICES, is_unary, methods_of, needs_key, path_of
from serving.front.status import grpc_trailers, message_of, status_of, to_serving_error
from serving.limits import MAX_SMALL_BYTES
from serving.system.haproxy_callers import REFUSAL, WORK_RPCS, caller_rules
from serving.system.haproxy_http import AWAY, late, reply
from serving.system.haproxy_words import NAME_ANSWER, REQUEST_ID_RULES, quoted_format

HELD_RPCS = ("/vireo.v1.Vireo/Classify", "/inference.GRPCInferenceService/ModelInfer")
"""Inference calls of which the whole request comes at once. A stream must not be waited for: it may stay open."""
_HEALTHZ = "/ray.serve.RayServeAPIService/Healthz"
"""Answered by a rule of Ray's. Its neighbour ListApplications would be sent to a server that is not ours."""
_RAYS_METADATA = "^(application|multiplexed_model_id|session_id)$"
"""By these Ray Serve would look for another application, or choose a replica."""
_PREFIX_BYTES = 5
"""Before each message: whether it is compressed, and its length in four bytes, the most significant first."""


def grpc_rules(config: ResolvedConfig) -> Iterator[str]:
    """Yield the lines that come first in the gRPC front end."""
    wait = f"http-request wait-for-body time {round(1e3 * config.settings.limits.body_timeout_s)}ms"
    yield from REQUEST_ID_RULES
    # Ray has a name of its own for it, which it logs and sends among the trailers.
    yield "http-request set-header request_id %[var(txn.request_id)]"
    yield f"http-request del-header {_RAYS_METADATA} -m reg"
    # A gateway's own answer has its id among the trailers; only an answer without a message has them in front.
    yield f"{NAME_ANSWER} {{ res.hdr(grpc-status) -m found }}"
    yield f"{NAME_ANSWER} {{ status 400:599 }}"
    served = [method for service in SERVICES for method in methods_of(service)]
    keyless = [method for method in served if not needs_key(method)]
    yield f"acl vireo_served path {_HEALTHZ} {' '.join(map(path_of, served))}"
    yield f"acl vireo_keyless path {' '.join(map(path_of, keyless))}"
    yield f"acl vireo_keyless_unary path {' '.join(path_of(method) for method in keyless if is_unary(method))}"
    # HAProxy leaves out the type of an answer without content, which clients then take for no gRPC.
    yield "http-after-response set-header content-type application/grpc if { res.hdr(grpc-status) -m found }"
    yield f"http-request return status 415 {reply(_NO_GRPC)} if !{{ req.hdr(content-type) -m beg application/grpc }}"
    yield "acl vireo_plain req.fhdr_cnt(grpc-encoding) eq 0"
    yield "acl vireo_plain req.fhdr(grpc-encoding) -m str identity"
    yield (
        f"{_answer(_COMPRESSED)} hdr grpc-accept-encoding identity "
        "if !vireo_plain or { req.fhdr_cnt(grpc-encoding) gt 1 }"
    )
    yield f"{_answer(_NOT_OURS)} if !vireo_served"
    if not config.allow_anonymous_loopback:
        has_key = ("authorization", "x-api-key")
        absent = " ".join(f"!{{ req.hdr({name}) -m found }}" for name in has_key)
        yield f"{_answer(missing_key())} if {absent} !vireo_keyless !{{ path {_HEALTHZ} }}"
    # Whoever has no key sends one short message, and does not keep a gateway waiting for it.
    yield f"{wait} at-least {_PREFIX_BYTES} if vireo_keyless"
    yield f'{_answer(_LONG)} if vireo_keyless {{ req.body,bytes(1,4),be2dec("",4) -m int gt {MAX_SMALL_BYTES} }}'
    yield f"{wait} if vireo_keyless_unary"
    work, places = f"{{ path {' '.join(WORK_RPCS)} }}", config.settings.gateway.max_in_flight
    yield from caller_rules(config, _words(REFUSAL), work, places)
    # HAProxy can send a request again, to another gateway, only if it had all of it before it sent it the first time.
    # What does not fit into its buffer is passed on at once.
    yield f"{wait} if {{ path {' '.join(HELD_RPCS)} }}"


_COMPRESSED = UnsupportedEncoding("messages are taken uncompressed only; send grpc-encoding identity, or none")
_NO_GRPC = UnsupportedMediaType("only gRPC is spoken on this port; HTTP has a port of its own", param="content-type")
_NOT_OURS = UnknownPath("no such method is served here; server reflection lists those that are")
_LONG = PayloadTooLarge(f"the message has more than {MAX_SMALL_BYTES} bytes, the limit of this method. Send less")


def whole_answers(config: ResolvedConfig) -> dict[int, bytes]:
    """Return what is said on the gRPC port when something goes wrong, by the HTTP status that it would be."""
    errors = {
        400: InvalidRequest("the request is no valid gRPC; correct it"),
        408: late(config),
        500: to_serving_error(RuntimeError()),
        502: AWAY,
        503: AWAY,
        504: AWAY,
    }
    return {status: _whole_answer(error) for status, error in errors.items()}


def _whole_answer(error: ServingError) -> bytes:
    """An answer without a message: status and trailers come in its header."""
    fields = [("content-type", "application/grpc"), ("content-length", "0"), *told_in_front(error)]
    return "\r\n".join(["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in fields), "", ""]).encode()


def told_in_front(error: ServingError) -> list[tuple[str, str]]:
    """Return the headers of a gRPC answer without a message: its status and trailers."""
    trailers = [
        (name, b64encode(value).decode() if isinstance(value, bytes) else value) for name, value in grpc_trailers(error)
    ]
    status, _name = status_of(error).grpc.value
    return [("grpc-status", str(status)), ("grpc-message", message_of(error)), *trailers]


def _answer(error: ServingError) -> str:
    return f"http-request return {_words(error)}"


def _words(error: ServingError) -> str:
    headers = " ".join(f"hdr {name} {quoted_format(value)}" for name, value in told_in_front(error))
    return f"status 200 {headers}"
