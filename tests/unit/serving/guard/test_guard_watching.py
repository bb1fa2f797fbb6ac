"""What an order of the gateway means for one choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from schedulers.guard.calibration import Group, GuardCalibration
from schedulers.guard.detectors import ALL, Layer
from schedulers.guard.text import TextModel
from schedulers.guard.watch import Next
from serving.delivery.stream.wire import EngineImage, EngineRequest, GuardOrder
from serving.guard.watching import limited, purified_request, said, watch_for
from tests.support.chat_replicas import engine_request

CAP = 20
IMAGE = EngineImage("5a", np.zeros((1, 8, 8, 3), np.uint8), (1, 1))
GROUP = Group(
    num=1000,
    p95_tokens=CAP,
    residuals=tuple(i / 1000 for i in range(1000)),
    repeat=(0.9,) * 1000,
    special_run=(1.0,) * 1000,
    eos=(1.0,) * 1000,
    eos_median=(-5.0,),
    squeeze=(0.1,) * 1000,
)
CALIBRATION = GuardCalibration(
    model="m", checkpoint_sha256="", num_benign=1000, text=TextModel(weights=(0.0,) * 16), groups={"all": GROUP}
)


def order(**fields: Any) -> GuardOrder:
    plain = GuardOrder("enforce", "all", 30, CAP, {"screen": 1.0}, 0.05, 0.01, ALL)
    return plain._replace(**fields)


def request(**fields: Any) -> EngineRequest:
    return engine_request(max_tokens=500, **({"images": (IMAGE,)} | fields))


def seen(one: EngineRequest, what: GuardOrder) -> set[str]:
    """Detectors that speak after a few tokens."""
    watch = watch_for(one, what, CALIBRATION)
    watch.push([1] * 8, [-5.0] * 8)
    return set(watch.p_values())


def test_all_detectors_watch_an_ordinary_request() -> None:
    stream = {"length", "repeat", "special", "eos"}
    assert seen(request(), order()) == stream | {"screen", "squeeze"}
    assert seen(request(json_schema="{}"), order()) == {"length", "special", "screen"}
    assert watch_for(request(), order(), None).p_values() == {"screen": 1.0}, "nothing to compare with"


@pytest.mark.parametrize("layer", ["length", "repeat", "special", "eos", "squeeze"])
def test_each_layer_has_a_switch(layer: str) -> None:
    layers = tuple(other for other in ALL if other != layer)
    assert seen(request(), order(layers=layers)) == seen(request(), order()) - {layer}


def test_request_that_asks_for_length_is_no_suspect_for_being_long() -> None:
    for asking in ({"ignore_eos": True}, {"min_tokens": CAP}):
        assert seen(request(**asking), order()) == {"screen"}, asking
        watch = watch_for(request(**asking), order(p_values={"screen": 0.001}), CALIBRATION)
        assert {watch.push((1,)) for _ in range(500)} == {Next.GO_ON}
    assert "eos" not in seen(request(min_tokens=2), order())
    assert "eos" not in seen(request(logit_bias={1: -5.0}), order())
    assert "length" in seen(request(min_tokens=2), order())


def test_end_is_told_where_somebody_listens_and_nowhere_else() -> None:
    assert limited(request(), order(), CALIBRATION).tells_ends
    without = tuple(layer for layer in ALL if layer != Layer.EOS)
    for one, what, calibration in (
        (request(), None, CALIBRATION),
        (request(), order(mode="off"), CALIBRATION),
        (request(), order(layers=without), CALIBRATION),
        (request(), order(), None),
        (request(ignore_eos=True), order(), CALIBRATION),
    ):
        assert limited(one, what, calibration) == one


def test_replay_ends_at_its_cap_in_the_engine_itself_unless_it_is_observed() -> None:
    assert limited(request(), order(is_capped=True), None).max_tokens == CAP
    for min_tokens in (CAP - 5, CAP + 5):
        capped = limited(request(min_tokens=min_tokens), order(is_capped=True), None)
        assert (capped.max_tokens, capped.min_tokens) == (max(CAP, min_tokens), min_tokens)
    assert limited(request()._replace(max_tokens=3), order(is_capped=True), None).max_tokens == 3
    for mode in ("observe", "off"):
        assert limited(request(), order(is_capped=True, mode=mode), None) == request()


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ({"images": ()}, {}),
        ({"min_tokens": 2}, {}),
        ({"logit_bias": {1: -5.0}}, {}),
        ({"json_schema": "{}"}, {}),
        ({}, {"mode": "observe"}),
        ({}, {"cap_tokens": 500}),
        ({}, {"layers": tuple(layer for layer in ALL if layer != Layer.CONFIRM)}),
    ],
)
def test_nobody_looks_twice_where_it_would_not_help_or_may_not(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    watch = watch_for(request(**fields), order(**changes), CALIBRATION)
    assert {watch.push((1,)) for _ in range(400)} == {Next.GO_ON}
    found = said(watch, 0.0)
    assert (found.action, found.is_confirmed, found.probe_tokens) == ("deprioritised", None, 0)
    watched = watch_for(request(), order(), CALIBRATION)
    assert Next.LOOK_TWICE in {watched.push((1,)) for _ in range(400)}, "else it would have"


def test_replay_is_not_ended_below_its_min_tokens() -> None:
    watch = watch_for(request(min_tokens=CAP + 5), order(is_capped=True), CALIBRATION)
    assert [watch.push((1,)) for _ in range(CAP + 5)].index(Next.END) == CAP + 4


def test_second_question_is_the_same_up_to_the_cap_and_the_model_alone_ends_it() -> None:
    first = request(logprobs=3, temperature=0.5, seed=7, stop=("x",))
    second = purified_request(first, order())
    assert (second.max_tokens, second.stop, second.logprobs) == (CAP, (), None)
    assert second.request_id != first.request_id
    kept = ("prompt_token_ids", "images", "temperature", "seed", "top_p")
    assert [getattr(second, name) for name in kept] == [getattr(first, name) for name in kept]
