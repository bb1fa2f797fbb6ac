"""HAProxy repeats a gateway's refusals to a caller that does not heed them, so that a flood costs no gateway anything.

A gateway refuses a caller that has its share of it for little, but not for nothing, and whoever sends faster than that
can be refused keeps everybody waiting. So a refusal that would meet whatever the caller sends (``meets_all`` of
``serving.errors``) is marked. After a few of them within a moment HAProxy gives the same answer by itself, until none has come
for that moment. Then requests reach the gateway again, which finds out first whether there is room for them: of what a
caller may have it loses nothing, as long as its share of the places outlasts the moment.

Of gRPC it sees refusals of calls whose answer is a stream: those of others are in trailers, which it cannot read.
Callers are told apart by the hashes of their keys, and two keys of a tenant are two. Who has none is one caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from serving.errors import QueueFull
from serving.front.grpc.registration import INFERENCE, VIREO, is_unary, methods_of, path_of
from serving.front.status import REFUSED

REPEATED: Final = QueueFull(
    "this server serves as many requests of yours as it can now; send fewer at a time, and retry in 1 s",
    retry_after_s=1.0,
    meets_all=True,
)
MOMENT_MS: Final = 250
"""Long beside the time in which a gateway refuses what has come already, and short beside the time that the requests
in a full gateway take."""
NUM_REFUSALS: Final = 8
"""Of a caller within a moment, beyond which HAProxy repeats them: nobody meets it who waits as told."""
_MAX_CALLERS, _FORGET_S = 16_384, 10
_LIGHT_RPCS: Final = frozenset({"GetBudget"})
WORK_RPCS: Final = tuple(
    path_of(method)
    for service in (VIREO, INFERENCE)
    for method in methods_of(service)
    if is_unary(method) and method.name not in _LIGHT_RPCS and (service is VIREO or method.name == "ModelInfer")
)
"""Methods of which one request is one piece of work."""


def rules(refuse: str, work: str) -> Iterator[str]:
    """Yield the lines of a front end. ``refuse``: the words of its answer. ``work``: the condition of what is refused."""
    name, value = REFUSED
    kept = f"gpc0,gpc0_rate({MOMENT_MS})"
    yield f"stick-table type binary len 32 size {_MAX_CALLERS} expire {_FORGET_S}s store {kept}"
    yield "http-request set-var(txn.caller) http_auth_bearer,sha2(256)"
    yield (
        "http-request set-var(txn.caller) req.fhdr(x-api-key),sha2(256) "
        "unless { req.hdr(authorization) -m found } || !{ req.hdr(x-api-key) -m found }"
    )
    yield "http-request set-var(txn.caller) str(nobody) unless { var(txn.caller) -m found }"
    yield "http-request track-sc0 var(txn.caller)"
    yield f"http-request deny {refuse} if {{ sc0_gpc0_rate gt {NUM_REFUSALS} }} {work}"
    yield f"http-response sc-inc-gpc0(0) if {{ res.hdr({name}) -m str {value} }}"
    yield f"http-after-response del-header {name}"
