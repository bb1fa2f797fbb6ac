"""Attention and caches on whole pipelines of diffusers: exact where they do nothing, apart where they keep some."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import JobState, SettingError
from models.families.diffusers.example import example
from models.families.diffusers.family import FAMILY, facts, resolve, work
from models.testing.jobs import finished
from models.testing.subject import Subject
from serving.replica.job.snapshots import restored, take_snapshot

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(600)]

_KINDS = [
    {"attention": "adaspa:0.5", "cache": "first_block:0.9"},
    {"cache": "taylorseer:2:1"},
    {"attention": "tile:1:2"},
    {"attention": "ras:0.5"},
    {},
]
_KEEPING = [_KINDS[0], _KINDS[1], _KINDS[3]]


@cache
def _subject(name: str) -> Subject:
    return Subject(FAMILY, name)


def _open(subject: Subject, seed: int = 0, **settings: Any) -> JobState:
    request = example(subject.variant, np.random.default_rng(seed))
    point = subject.family.check_point({"num_inference_steps": 8, **settings})
    state: JobState = subject.runner.open(request, point, seed)
    return state


def _latents(subject: Subject, **settings: Any) -> torch.Tensor:
    state = _open(subject, **settings)
    finished(subject, [state])
    latents: torch.Tensor = state.kept["latents"]
    return latents


@pytest.mark.parametrize("name", [name for name in FAMILY.examples if "wan" in name])
def test_sparsity_0_changes_no_bit_and_others_do(name: str) -> None:
    subject = _subject(name)
    untouched = _latents(subject)
    assert torch.equal(_latents(subject, attention="adaspa:0"), untouched)
    assert torch.equal(_latents(subject, attention="ras:1"), untouched)
    for kind in _KINDS[:4]:
        assert not torch.equal(_latents(subject, **kind), untouched)
    assert torch.equal(_latents(subject), untouched)


def test_interleaved_requests_have_the_bits_of_each_alone() -> None:
    subject = _subject("wan22-t2v")
    alone = [_latents(subject, **kind) for kind in _KINDS]
    states = [_open(subject, **kind) for kind in _KINDS]
    while any(subject.runner.remaining(state) for state in states):
        for state in states:
            if subject.runner.remaining(state):
                subject.runner.step([state])
    assert all(torch.equal(state.kept["latents"], one) for state, one in zip(states, alone, strict=True))


@pytest.mark.parametrize("kind", _KEEPING, ids=str)
def test_what_keeps_something_takes_no_company_and_is_counted_and_freed(kind: dict[str, Any]) -> None:
    subject = _subject("wan-t2v")
    first, second = _open(subject, **kind), _open(subject, **kind)
    for state in (first, second):
        for _ in range(4):  # the prompt, and three steps
            subject.runner.step([state])
            assert state.bytes_held <= work(subject.variant, state.request, state.point).bytes_held
    assert subject.runner.group_key(first) != subject.runner.group_key(second)
    kept = [weakref.ref(tensor) for tensor in first.cache["prepared"].method.tensors()]
    held = sum(one().nbytes for one in kept)
    first.cache.pop("clean")
    assert first.bytes_held >= held > 0
    del first, state
    gc.collect()
    assert all(one() is None for one in kept)


@pytest.mark.parametrize("kind", _KINDS[:2], ids=str)
def test_a_resume_without_its_cache_goes_on_with_another_clip(kind: dict[str, Any]) -> None:
    subject = _subject("wan-t2v")
    state, resumed = _open(subject, **kind), _open(subject, **kind)
    for _ in range(6):
        subject.runner.step([state])
    resumed.kept = state.kept
    finished(subject, [state])
    finished(subject, [resumed])
    assert bool(torch.isfinite(resumed.kept["latents"]).all())
    assert not torch.equal(resumed.kept["latents"], state.kept["latents"])


@pytest.mark.parametrize("name", ["wan-t2v", "wan22-i2v", "wan22-ti2v", "ltx-i2v", "flux-dev", "qwen-image"])
def test_ras_goes_on_where_it_was_and_beside_others(name: str) -> None:
    """Resumed after any step it makes the same bits: it is taken up from the last step that ran all tokens."""
    subject, settings = _subject(name), {"attention": "ras:0.5", "num_inference_steps": 10}
    unbroken, beside = _open(subject, **settings), _open(subject, 1, **settings)
    finished(subject, [beside])
    kept: list[Mapping[str, Any]] = []
    while subject.runner.remaining(unbroken).get("denoise"):
        subject.runner.step([unbroken])
        now = dict(unbroken.kept)
        kept.append(restored(now, take_snapshot(now, now["step"])))
    assert [each["step"] for each in kept] == list(range(11))
    assert len({frozenset((key, getattr(value, "shape", None)) for key, value in one.items()) for one in kept}) == 1
    taken_up = []
    for each in kept[::3]:
        resumed = _open(subject, **settings)
        resumed.kept = each
        subject.runner.step([resumed])  # the prompt
        taken_up.append(resumed.kept["step"])
        states = [resumed, other := _open(subject, 1, **settings)]
        while any(subject.runner.remaining(state).get("denoise") for state in states):
            for state in states:
                if subject.runner.remaining(state).get("denoise"):
                    subject.runner.step([state])
        assert torch.equal(resumed.kept["latents"], unbroken.kept["latents"])
        assert torch.equal(other.kept["latents"], beside.kept["latents"])
    assert taken_up == [0, 3, 4, 7], "the steps of 10 that run all tokens are 0 to 4 and 7"


@pytest.mark.parametrize("name", ["flux-dev", "qwen-image"])
def test_each_picture_of_a_request_chooses_its_own_tokens(name: str) -> None:
    subject, settings = _subject(name), {"attention": "ras:0.4"}
    several = _open(subject, **settings)
    point, request = several.point, replace(several.request, count=3)
    state = subject.runner.open(request, point, 0)
    while subject.runner.remaining(state).get("denoise"):
        subject.runner.step([state])
        assert state.bytes_held <= work(subject.variant, request, point).bytes_held
    for row in range(3):
        alone = subject.runner.open(several.request, point, row)
        finished(subject, [alone])
        torch.testing.assert_close(alone.kept["latents"], state.kept["latents"][row : row + 1], atol=1e-5, rtol=1e-5)


def test_less_work_is_reckoned_for_fewer_tokens() -> None:
    subject = _subject("wan-t2v")

    def macs(**settings: Any) -> float:
        state = _open(subject, **settings)
        return work(subject.variant, state.request, state.point).units["macs"]

    assert macs(attention="ras:0.25") < macs(attention="ras:0.5") < macs(attention="ras:1") == macs()
    assert macs(attention="ras:0.25", num_inference_steps=4) == macs(num_inference_steps=4)


def test_settings_that_do_not_fit_are_refused() -> None:
    subject = _subject("wan-t2v")
    with pytest.raises(SettingError, match="this clip has 3: use tile:K:3-K"):
        _open(subject, attention="tile:2:6")
    with pytest.raises(SettingError, match="use dense, tile:K:REST"):
        _open(subject, attention="ras:0")
    for name in ("wan-t2v", "flux-dev"):
        with pytest.raises(SettingError, match="a cache of steps would skip"):
            _open(_subject(name), attention="ras:0.5", cache="taylorseer:3")
    for name in ("sd3", "hunyuan15-t2v"):
        with pytest.raises(SettingError, match="does not say where its tokens may be cut"):
            _open(_subject(name), attention="ras:0.5")


def test_what_applies_is_said() -> None:
    said = facts(resolve("wan-t2v"))
    assert said["methods that apply"] == ("adaspa", "tile", "first_block", "taylorseer", "ras", "ranks")
    assert said["methods that do not"] == ()
    (of_sd3,) = (why for why in facts(resolve("sd3"))["methods that do not"] if why.startswith("ras"))
    assert of_sd3 == "ras (SD3Transformer2DModel does not say where its tokens may be cut (_cp_plan))"
    assert {knob.name for knob in _subject("wan-t2v").family.knobs} > {"attention", "cache"}
