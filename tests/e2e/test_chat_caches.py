"""What is asked twice is not computed twice, for the same tenant; another tenant sees nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.chats import body_of, fresh_png, fresh_question, grpc_answer, grpc_call, grpc_request, turn
from tests.e2e.surfaces import Door
from tests.support.chat_system import BETA, CHAT_MODEL, ChatSystem, EngineCounts
from tests.support.waiting import let_pass, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def client(chat: ChatSystem) -> Iterator[openai.OpenAI]:
    with chat.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def beta(chat: ChatSystem) -> Iterator[openai.OpenAI]:
    with chat.client(BETA) as opened:
        yield opened


def ask(client: openai.OpenAI, messages: list[Any], **fields: Any) -> Any:
    return client.chat.completions.create(**body_of(messages, **fields))


def ask_until_hit(client: openai.OpenAI, messages: list[Any]) -> Any:
    """Results are written in the background."""
    return wait_until(lambda: (a := ask(client, messages)).vireo["cache"] == "hit" and a, "a hit")


def work(counts: EngineCounts) -> tuple[float, float]:
    return counts.prompt, counts.generated


def lookups(counts: EngineCounts) -> dict[str, float]:
    """Hits and misses of images: in the gateway (processed), in the replica (tiles), and runs of the vision tower."""
    total = counts.metrics.total
    return {
        "processed hit": total("vireo_processed_image_lookups_total", model=CHAT_MODEL, outcome="hit"),
        "processed miss": total("vireo_processed_image_lookups_total", model=CHAT_MODEL, outcome="miss"),
        "tiles hit": total("vllm:mm_cache_hits_total"),
        "tower": total("vireo_chat_encoder_images_total", model=CHAT_MODEL),
    }


def test_same_request_is_answered_from_the_cache_without_any_work(
    chat: ChatSystem, client: openai.OpenAI, chat_door: Door
) -> None:
    question, image = fresh_question(), fresh_png()
    messages = turn(question, image)
    first = ask(client, messages)
    assert first.vireo["cache"] == "miss"
    hit = ask_until_hit(client, messages)
    before = work(chat.engine())

    again = ask(client, messages)
    *chunks, last = list(ask(client, messages, stream=True, stream_options={"include_usage": True}))
    call = grpc_call(chat_door, grpc_request(question, image))
    by_grpc = grpc_answer(call)

    said = first.choices[0].message.content
    assert hit.choices[0].message.content == again.choices[0].message.content == by_grpc.text == said
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    assert again.choices[0].finish_reason == first.choices[0].finish_reason
    assert (again.vireo["cache"], last.vireo["cache"], by_grpc.end.vireo.cache) == ("hit", "hit", "hit")
    assert again.vireo["energy_j"] == 0
    assert again.usage.completion_tokens == first.usage.completion_tokens
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert work(chat.engine()) == before, "a hit costs the engine nothing"


def test_sampled_answer_is_never_taken_from_the_cache(client: openai.OpenAI) -> None:
    messages = turn(fresh_question())
    answers = [ask(client, messages, temperature=1.0, seed=1) for _ in range(3)]
    assert [answer.vireo["cache"] for answer in answers] == ["miss"] * 3


def test_any_difference_is_a_miss(client: openai.OpenAI) -> None:
    question, image = fresh_question(), fresh_png()
    ask_until_hit(client, turn(question, image))
    others = [
        ask(client, turn(question + "?", image)),
        ask(client, turn(question, fresh_png())),
        ask(client, turn(question, image), max_tokens=23),
        ask(client, turn(question, image), stop=["no such text"]),
        ask(client, [{"role": "system", "content": "Be brief."}, *turn(question, image)]),
    ]
    assert [answer.vireo["cache"] for answer in others] == ["miss"] * len(others)


def test_same_image_with_another_question_is_neither_decoded_nor_encoded_again(
    chat: ChatSystem, client: openai.OpenAI
) -> None:
    image = fresh_png(448, 448)
    ask(client, turn(fresh_question(), image))
    wait_until(lambda: lookups(chat.engine())["tower"] >= 1, "the vision tower's counter")
    chat.wait_idle()
    seen = wait_quiet(chat)
    answer = ask(client, turn(fresh_question(), image))
    assert answer.vireo["cache"] == "miss"
    after = wait_quiet(chat)
    grown = {name: after[name] - seen[name] for name in seen}
    assert grown == {"processed hit": 1, "processed miss": 0, "tiles hit": 1, "tower": 0}


def test_other_tenant_sees_no_hit_anywhere(chat: ChatSystem, client: openai.OpenAI, beta: openai.OpenAI) -> None:
    image = fresh_png(448, 448)
    # The image first: all of a prompt up to its question could be shared.
    messages = turn(fresh_question() + " And so on." * 40, image)
    ask_until_hit(client, messages)
    chat.wait_idle()
    seen = wait_quiet(chat)
    answer = ask(beta, messages)
    assert answer.vireo["cache"] == "miss"
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    after = wait_quiet(chat)
    grown = {name: after[name] - seen[name] for name in seen}
    assert grown == {"processed hit": 0, "processed miss": 1, "tiles hit": 0, "tower": 1}
    # And not because nothing is ever shared: the same tenant's next question is.
    shared = ask(beta, turn(messages[0]["content"][-1]["text"] + " Other.", image))
    assert shared.usage.prompt_tokens_details.cached_tokens > 0


def wait_quiet(chat: ChatSystem) -> dict[str, float]:
    """The counters, once two readings over a second apart agree: replicas write theirs once a second."""
    last: dict[str, float] = {}
    for _ in range(10):
        now = lookups(chat.engine())
        if now == last:
            return now
        last = now
        let_pass(1.2)
    raise AssertionError("counters never rest")
