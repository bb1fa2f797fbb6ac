"""What a gateway's order means for one choice on a replica, and what is said of it at its end.

A request that asks for length itself is not watched: with ``ignore_eos``, or ``min_tokens`` of its cap or more, it goes
on where the model would have ended, and what it then says is no evidence of anything. It pays for what it asked for.
The end's probability is no evidence either where a bias, a schema or fewer ``min_tokens`` decide when it may end.

Nor does a second look say anything there: who has a hand in when answers end could have the one about a picture go on
and the one about its copy end, and so put an innocent picture into quarantine for everybody. It is not taken where
``min_tokens``, ``ignore_eos``, a bias or a schema is sent. Nor does it hear stop strings: the answer about a copy has
ended where the model ends it. No cap is lower than ``min_tokens``.
"""

from __future__ import annotations

from collections.abc import Mapping

from schedulers.guard.calibration import Group, GuardCalibration
from schedulers.guard.detectors import Layer
from schedulers.guard.stream import StreamMonitor
from schedulers.guard.watch import Watch
from schedulers.policies.guard import Mode, Rules
from serving.delivery.stream.wire import EngineRequest, GuardOrder, GuardSaid


def limited(request: EngineRequest, order: GuardOrder | None, calibration: GuardCalibration | None) -> EngineRequest:
    """The request that the engine gets: that of a replay ends at its cap; one whose end is watched tells of it."""
    if order is None or order.mode == Mode.OFF:
        return request
    if order.is_capped and order.mode == Mode.ENFORCE:
        request = request._replace(max_tokens=max(1, min(request.max_tokens, _cap_tokens(request, order))))
    return request._replace(tells_ends=_watches_ends(request, order, calibration))


def watch_for(
    request: EngineRequest, order: GuardOrder, calibration: GuardCalibration | None, *, sees_apart: bool = True
) -> Watch:
    """Follows one choice. ``sees_apart``: whether its engine tells how far an embedding has moved."""
    layers, group = _layers(request, order), _group(order, calibration)
    monitor = None
    if group is not None and calibration is not None and not _asks_for_length(request, order):
        is_structured = request.json_schema is not None
        monitor = StreamMonitor(group, order.bound_tokens, calibration.special_ids, is_structured, layers)
    return Watch(
        Rules(mode=Mode(order.mode), watch_at=order.watch_at, suspect_at=order.suspect_at),
        _cap_tokens(request, order),
        p_values=order.p_values,
        monitor=monitor,
        can_confirm=_can_confirm(request, order),
        squeeze=group.squeeze if group is not None and sees_apart and Layer.SQUEEZE in layers else (),
        is_replay=order.is_capped,
    )


def said(watch: Watch, probe_s: float) -> GuardSaid:
    """What the last delta tells."""
    verdict = watch.verdict()
    p_values: Mapping[str, float] = watch.p_values()
    return GuardSaid(
        str(verdict.action),
        verdict.score,
        verdict.reasons,
        p_values,
        watch.is_confirmed,
        watch.num_probe_tokens,
        probe_s,
    )


def purified_request(request: EngineRequest, order: GuardOrder) -> EngineRequest:
    """The same question up to the cap, which the model alone ends; its pictures are still those of the request."""
    return request._replace(
        request_id=f"{request.request_id}-again",
        max_tokens=order.cap_tokens,
        stop=(),
        logprobs=None,
        tells_ends=False,
    )


def _group(order: GuardOrder, calibration: GuardCalibration | None) -> Group | None:
    return None if calibration is None else calibration.group(order.group)


def _cap_tokens(request: EngineRequest, order: GuardOrder) -> int:
    return max(order.cap_tokens, request.min_tokens)


def _layers(request: EngineRequest, order: GuardOrder) -> tuple[str, ...]:
    return tuple(layer for layer in order.layers if layer != Layer.EOS or not _decides_end(request))


def _decides_end(request: EngineRequest) -> bool:
    """Whether its sender has a hand in when the model ends it."""
    has_floor = request.ignore_eos or request.min_tokens > 0
    return has_floor or bool(request.logit_bias) or request.json_schema is not None


def _asks_for_length(request: EngineRequest, order: GuardOrder) -> bool:
    return request.ignore_eos or request.min_tokens >= order.cap_tokens


def _watches_ends(request: EngineRequest, order: GuardOrder, calibration: GuardCalibration | None) -> bool:
    group = _group(order, calibration)
    is_known = group is not None and bool(group.eos)
    return is_known and Layer.EOS in _layers(request, order) and not _asks_for_length(request, order)


def _can_confirm(request: EngineRequest, order: GuardOrder) -> bool:
    """Whether there is a picture to purify, anything to be gained, and an end that is the model's own."""
    is_worth_it = order.cap_tokens < request.max_tokens and not order.is_capped
    return Layer.CONFIRM in order.layers and bool(request.images) and is_worth_it and not _decides_end(request)
