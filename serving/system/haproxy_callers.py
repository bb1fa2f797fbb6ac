"""HAProxy holds each caller to as many requests at a time as a gateway can let in, so that a flood waits nowhere.

A gateway lets a tenant have its share, or all that others leave (``schedulers.shared_room``), and refuses the rest for
little. But who sends more than a gateway can even refuse keeps everybody waiting, in sockets and in the gateway's event
loop, where all goes in order of arrival. So a gateway says with each answer how many requests of that caller it takes
at a time now (``x-vireo-places``), and HAProxy refuses what is beyond that by itself, as the gateway would, for some
microseconds. Whoever has not been answered in the last two seconds may have a quarter of all places, and at least 64,
until the next answer comes, so that no flood begins with a full room. Answers of gRPC have nothing of the kind that
HAProxy could read: there a caller may have as many as there are places in all, more than which no gateway lets in,
whoever else is there.

Callers are told apart by the hashes of their keys, and two keys of a tenant are two. Who has none is one caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from serving.config import ResolvedConfig
from serving.errors import QueueFull
from serving.front.grpc.registration import INFERENCE, VIREO, is_unary, methods_of, path_of
from serving.front.http.call import PLACES_HEADER

REFUSAL: Final = QueueFull(
    "this server has as many requests of yours as it takes at a time now; send fewer at a time, or retry in 1 s",
    retry_after_s=1.0,
)
_FIRST: Final = 64
_TOLD_S: Final = 2
"""For so long what an answer has told holds: a caller whose requests take longer would else be refused by what was so
before they began, and only an answer could tell it better."""
_MAX_CALLERS, _FORGET_S = 16_384, 10
_LIGHT_RPCS: Final = frozenset({"GetBudget"})
WORK_RPCS: Final = tuple(
    path_of(method)
    for service in (VIREO, INFERENCE)
    for method in methods_of(service)
    if is_unary(method) and method.name not in _LIGHT_RPCS and (service is VIREO or method.name == "ModelInfer")
)
"""Methods of which a call is one request. Of a stream, each message is."""


def first_places(places: int) -> int:
    """Of so many places, those of a caller that was not told yet how many it may have."""
    return max(min(_FIRST, places), places // 4)


def caller_rules(config: ResolvedConfig, refuse: str, work: str, untold: int) -> Iterator[str]:
    """Yield the lines of a front end. ``refuse``: words of the answer. ``work``: condition of what counts. ``untold``:
    places of a caller whom no answer has told of any."""
    gateway, told = config.settings.gateway, PLACES_HEADER.decode()
    yield f"stick-table type binary len 32 size {_MAX_CALLERS} expire {_FORGET_S}s store conn_cur,gpt(2)"
    yield f"http-request set-var(txn.work) bool(true) if {work}"
    yield "acl vireo_work var(txn.work) -m bool"
    yield "http-request set-var(txn.caller) http_auth_bearer,sha2(256)"
    yield (
        "http-request set-var(txn.caller) req.fhdr(x-api-key),sha2(256) "
        "if !{ req.hdr(authorization) -m found } { req.hdr(x-api-key) -m found }"
    )
    yield "http-request set-var(txn.caller) str(nobody) if !{ var(txn.caller) -m found }"
    yield "http-request track-sc0 var(txn.caller) if vireo_work"
    yield "http-request set-var(txn.told_at) sc_get_gpt(1,0) if vireo_work"
    yield f"acl vireo_untold date,sub(txn.told_at) -m int gt {_TOLD_S}"
    yield "http-request set-var(txn.places) sc_get_gpt(0,0) if vireo_work !vireo_untold"
    yield f"http-request set-var(txn.places) int({untold}) if vireo_work vireo_untold"
    yield f"http-request set-var(txn.places) var(txn.places),mul({gateway.replicas}) if vireo_work"
    yield f"http-request deny {refuse} if vireo_work {{ sc0_conn_cur,sub(txn.places) -m int gt 0 }}"
    yield f"http-response sc-set-gpt(0,0) res.hdr({told}) if {{ res.hdr({told}) -m found }}"
    yield f"http-response sc-set-gpt(1,0) date if {{ res.hdr({told}) -m found }}"
    yield f"http-after-response del-header {told}"
