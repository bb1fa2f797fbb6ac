"""Whoever leaves a chat, and however, frees the engine at once: seen in vLLM's own counters, through HAProxy.

No time is asserted. That an answer was given up, and not finished, is seen in the tokens that were generated: far fewer
than it would have had. The seconds that it took are printed (``pytest -rP``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.e2e.chats import RawChat, body_of, fresh_png, fresh_question, grpc_call, grpc_request, has_text, turn
from tests.e2e.surfaces import Door, grpc_failure
from tests.support.chat_system import ALPHA, MAX_OUTPUT_TOKENS, ChatSystem, EngineCounts
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BIG_IMAGES = 8
"""Each of 13 tiles: over 1,600 tokens together, which the engine reads 64 at a time."""


@pytest.fixture
def before(chat: ChatSystem) -> Iterator[EngineCounts]:
    """Counters of an idle engine, to which it must come back."""
    chat.wait_idle()
    yield chat.engine()
    chat.wait_idle()


def long_body(chat: ChatSystem, *, stream: bool) -> dict[str, Any]:
    """An answer that takes seconds."""
    fields = {"max_tokens": MAX_OUTPUT_TOKENS, "logit_bias": chat.endless(), "stream": stream}
    return body_of(turn(fresh_question()), **fields)


def big_images() -> list[bytes]:
    return [fresh_png(672, 896) for _ in range(BIG_IMAGES)]


def wait_in_engine(chat: ChatSystem) -> None:
    wait_until(lambda: chat.engine().running > 0, "the engine has begun")


def wait_generating(chat: ChatSystem, before: EngineCounts) -> None:
    wait_until(lambda: chat.engine().generated >= before.generated + 8, "some tokens")


def check_freed(chat: ChatSystem, before: EngineCounts) -> None:
    """Call at the moment of leaving."""
    wait_freed(chat)
    generated = chat.engine().generated - before.generated
    assert generated < MAX_OUTPUT_TOKENS / 2, "the answer went on"
    wait_until(lambda: aborts(chat) > aborts_of(before), "an abort is counted")


def wait_freed(chat: ChatSystem) -> None:
    left_s = time.monotonic()
    wait_until(lambda: chat.engine().holds_nothing, "nothing running, waiting or held in the engine")
    print(f"freed after {time.monotonic() - left_s:.2f} s, a scrape included")


def aborts_of(counts: EngineCounts) -> float:
    return counts.metrics.total("vireo_chat_aborts_total")


def aborts(chat: ChatSystem) -> float:
    return aborts_of(chat.engine())


# -- while the answer is generated -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_cut_connection_frees_a_running_answer(stream: bool, chat: ChatSystem, before: EngineCounts) -> None:
    with RawChat(chat.system, ALPHA, long_body(chat, stream=stream)) as raw:
        if stream:
            assert any(has_text(event) for event in raw.events())
        wait_generating(chat, before)
        raw.leave()
        check_freed(chat, before)


def test_openai_client_that_closes_its_stream_frees_a_running_answer(chat: ChatSystem, before: EngineCounts) -> None:
    with chat.client() as client:
        stream = client.chat.completions.create(**long_body(chat, stream=True))
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        stream.close()
        check_freed(chat, before)


def test_cancelled_grpc_call_frees_a_running_answer(chat: ChatSystem, chat_door: Door, before: EngineCounts) -> None:
    request = grpc_request(fresh_question(), max_tokens=MAX_OUTPUT_TOKENS)
    request.sampling.logit_bias.update({int(token): bias for token, bias in chat.endless().items()})
    call = grpc_call(chat_door, request)
    assert next(call).HasField("delta")
    call.cancel()
    check_freed(chat, before)


def test_several_choices_are_freed_together(chat: ChatSystem, before: EngineCounts) -> None:
    with RawChat(chat.system, ALPHA, long_body(chat, stream=True) | {"n": 4, "temperature": 1.0}) as raw:
        assert any(has_text(event) for event in raw.events())
        wait_until(lambda: chat.engine().running == 4, "four choices run")
        raw.leave()
        check_freed(chat, before)


# -- while the prompt is read ------------------------------------------------------------------------------------------


def first_tokens(chat: ChatSystem) -> float:
    return chat.engine().metrics.total("vireo_chat_first_token_seconds_count")


def leaves_in_time(chat: ChatSystem, leave: Callable[[], None]) -> None:
    """``leave`` asks, waits for the engine and goes. An engine that has read the prompt by then gets more tries."""
    for _ in range(5):
        if _leaves_once(chat, leave):
            return
    pytest.fail("it was too late each time: the prompt had been read")


def _leaves_once(chat: ChatSystem, leave: Callable[[], None]) -> bool:
    """Whether the prompt was still being read. If it was not, the answer may have ended before anybody gave it up."""
    given, counts = first_tokens(chat), chat.engine()
    leave()
    wait_freed(chat)
    wait_until(
        lambda: aborts(chat) > aborts_of(counts) or first_tokens(chat) > given,
        "an abort, or an answer that came before it, is counted",
    )
    return first_tokens(chat) == given


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_cut_connection_frees_a_prompt_that_is_being_read(stream: bool, chat: ChatSystem) -> None:
    def leave() -> None:
        with RawChat(chat.system, ALPHA, body_of(turn(fresh_question(), *big_images()), stream=stream)) as raw:
            wait_in_engine(chat)
            raw.leave()

    leaves_in_time(chat, leave)


@pytest.mark.usefixtures("before")
def test_cancelled_grpc_call_frees_a_prompt_that_is_being_read(chat: ChatSystem, chat_door: Door) -> None:
    def leave() -> None:
        call = grpc_call(chat_door, grpc_request(fresh_question(), *big_images()))
        wait_in_engine(chat)
        call.cancel()

    leaves_in_time(chat, leave)


def test_who_leaves_takes_nobody_along(chat: ChatSystem, before: EngineCounts) -> None:
    """The others of the same gateway share its stream."""
    body = body_of(turn(fresh_question()), max_tokens=400, logit_bias=chat.endless(), stream=True)
    with RawChat(chat.system, ALPHA, body) as stays:
        events = stays.events()
        assert any(has_text(event) for event in events)
        with RawChat(chat.system, ALPHA, long_body(chat, stream=True)) as leaves:
            assert any(has_text(event) for event in leaves.events())
            leaves.leave()
        *chunks, done = list(events)
    assert done == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


# -- time is up --------------------------------------------------------------------------------------------------------


def test_deadline_of_a_grpc_call_frees_its_answer(chat: ChatSystem, chat_door: Door, before: EngineCounts) -> None:
    request = grpc_request(fresh_question(), n=4, temperature=1.0, max_tokens=MAX_OUTPUT_TOKENS)
    request.sampling.logit_bias.update({int(token): bias for token, bias in chat.endless().items()})
    with pytest.raises(grpc.RpcError) as caught:
        list(grpc_call(chat_door, request, timeout_s=0.7))
    assert grpc_failure(caught.value).status is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_freed(chat)
    assert chat.engine().generated - before.generated < 4 * MAX_OUTPUT_TOKENS / 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_latency_budget_ends_the_answer_in_time(stream: bool, chat: ChatSystem, before: EngineCounts) -> None:
    """Prices are known by now: the cap is lowered, or, where the machine was slower than them, the deadline strikes."""
    body = long_body(chat, stream=stream) | {"vireo": {"latency_ms": 700}}
    with RawChat(chat.system, ALPHA, body) as raw:
        if not stream:
            last = json.loads(raw.response().read())
        else:
            events = [event for event in raw.events() if event != "[DONE]"]
            last = events[-1]
    if "error" in last:
        assert last["error"]["code"] in ("deadline_exceeded", "budget_infeasible")
    else:
        assert last["vireo"]["degraded"] == ["max_tokens"]
        assert last["choices"][0]["finish_reason"] == "length"
    wait_freed(chat)
    assert chat.engine().generated - before.generated < MAX_OUTPUT_TOKENS
