"""Chat through HAProxy as its users meet it: the official ``openai`` client, generated gRPC stubs, typed errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import jsonschema
import openai
import pytest

from models.families.texthawk2.tiling import count_tiles
from models.registry import find
from tests.e2e.chats import (
    body_of,
    fresh_png,
    fresh_question,
    grpc_answer,
    grpc_call,
    grpc_request,
    image_part,
    turn,
    url_part,
)
from tests.e2e.surfaces import Door, grpc_failure
from tests.support.chat_system import ALPHA, BETA, CHAT_MODEL, MAX_IMAGES, MAX_MODEL_LEN, MAX_OUTPUT_TOKENS, ChatSystem
from tests.support.media_files import png_bomb

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(chat: ChatSystem) -> Iterator[openai.OpenAI]:
    with chat.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def beta(chat: ChatSystem) -> Iterator[openai.OpenAI]:
    with chat.client(BETA) as opened:
        yield opened


def text_of(answer: Any, index: int = 0) -> str:
    return str(answer.choices[index].message.content)


def ask(client: openai.OpenAI, messages: list[Any], **fields: Any) -> Any:
    return client.chat.completions.create(**body_of(messages, **fields))


def image_tokens(height: int, width: int) -> int:
    _, variant = find(CHAT_MODEL)
    return count_tiles(variant, width, height) * int(variant.io.tokens_per_tile)


# -- answers -----------------------------------------------------------------------------------------------------------


def test_models_are_listed(client: openai.OpenAI) -> None:
    by_id = {model.id: model for model in client.models.list()}
    about: Any = by_id[CHAT_MODEL]
    assert (about.object, about.owned_by) == ("model", "vireo")
    assert about.vireo["io"]["inputs"] == ["text", "image"]
    assert about.vireo["limits"] == {"max_model_len": MAX_MODEL_LEN, "max_output_tokens": MAX_OUTPUT_TOKENS}
    assert client.models.retrieve(CHAT_MODEL) == about


def test_answer_has_a_reason_a_usage_and_a_report(client: openai.OpenAI, chat: ChatSystem) -> None:
    answer = ask(client, turn(fresh_question()), logit_bias=chat.endless())
    assert (answer.object, answer.model) == ("chat.completion", CHAT_MODEL)
    assert answer.choices[0].finish_reason == "length"
    assert text_of(answer)
    usage = answer.usage
    assert (usage.completion_tokens, usage.total_tokens) == (24, usage.prompt_tokens + 24)
    assert usage.prompt_tokens_details.image_tokens == 0
    assert answer.vireo["operating_point"] == "max_tokens=24", "no picture was cut"
    assert answer.vireo["cache"] == "miss"
    assert answer.vireo["energy_j"] > 0


def test_stream_says_the_same_as_a_whole_answer_and_ends_with_the_usage(
    client: openai.OpenAI, beta: openai.OpenAI
) -> None:
    messages = turn(fresh_question(), fresh_png())
    whole = ask(client, messages)
    # Another tenant's: no cache knows the answer.
    stream = ask(beta, messages, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert {chunk.id for chunk in chunks} == {last.id}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of(whole)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole.choices[0].finish_reason]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.vireo["cache"] == "miss"


def test_two_images_of_different_shapes_are_seen_and_counted(client: openai.OpenAI) -> None:
    sizes = [(224, 224), (300, 640)]
    images = [fresh_png(*size) for size in sizes]
    content = [
        {"type": "text", "text": "First "},
        image_part(images[0]),
        {"type": "text", "text": "and then "},
        image_part(images[1]),
        {"type": "text", "text": fresh_question()},
    ]
    answer = ask(client, [{"role": "user", "content": content}])
    assert answer.usage.prompt_tokens_details.image_tokens == sum(image_tokens(*size) for size in sizes)
    words = ask(client, [{"role": "user", "content": [part for part in content if part["type"] == "text"]}])
    # Two tokens mark where an image begins and ends.
    assert answer.usage.prompt_tokens == words.usage.prompt_tokens + sum(image_tokens(*size) + 2 for size in sizes)


def test_conversation_goes_on_over_several_turns(client: openai.OpenAI) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *turn(fresh_question(), fresh_png())]
    first = ask(client, messages)
    messages += [{"role": "assistant", "content": text_of(first)}, *turn(fresh_question(), fresh_png())]
    second = ask(client, messages)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.image_tokens == 2 * image_tokens(224, 224)


def test_several_choices_come_whole_and_streamed(client: openai.OpenAI, chat: ChatSystem) -> None:
    fields = {"n": 2, "temperature": 1.0, "seed": 5, "logit_bias": chat.endless()}
    messages = turn(fresh_question())
    whole = ask(client, messages, **fields)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.usage.completion_tokens == 48
    texts = ["", ""]
    for chunk in ask(client, messages, stream=True, **fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [text_of(whole, 0), text_of(whole, 1)]
    assert texts[0] != texts[1]


def test_stop_ends_the_answer_before_it(client: openai.OpenAI, chat: ChatSystem) -> None:
    messages = turn(fresh_question())
    fields: dict[str, Any] = {"logit_bias": chat.endless(), "max_tokens": 48}
    full = text_of(ask(client, messages, **fields))
    stop = next(character for character in full[2:] if character != "\ufffd")
    answer = ask(client, messages, stop=[stop, "never said, surely"], **fields)
    assert answer.choices[0].finish_reason == "stop"
    assert text_of(answer) == full[: full.index(stop)]


def test_seed_repeats_a_sampled_answer_that_no_cache_holds(client: openai.OpenAI, chat: ChatSystem) -> None:
    messages = turn(fresh_question())
    fields: dict[str, Any] = {"temperature": 1.5, "logit_bias": chat.endless()}
    first, again, other = (ask(client, messages, seed=seed, **fields) for seed in (7, 7, 8))
    assert [answer.vireo["cache"] for answer in (first, again, other)] == ["miss"] * 3
    assert text_of(first) == text_of(again) != text_of(other)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answer_keeps_to_a_schema(client: openai.OpenAI, temperature: float) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA, "strict": True}}
    answer = ask(
        client,
        turn(fresh_question(), fresh_png()),
        response_format=form,
        temperature=temperature,
        seed=3,
        max_tokens=200,
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(text_of(answer)), SCHEMA)


def test_probabilities_are_shown_to_the_tenant_that_may_see_them(client: openai.OpenAI) -> None:
    answer = ask(client, turn(fresh_question()), logprobs=True, top_logprobs=2, max_tokens=4)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert token.logprob <= 0
        assert token.top_logprobs[0].token == token.token  # the likeliest is taken
        assert len(token.top_logprobs) == 2


# -- Responses ---------------------------------------------------------------------------------------------------------


def items_of(messages: list[Any]) -> list[Any]:
    """A conversation as items."""
    return [{**said, "content": [*map(_item_part, said["content"])]} for said in messages]


def _item_part(part: Any) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    return {"type": "input_image", "image_url": part["image_url"]["url"]}


def respond(client: openai.OpenAI, messages: list[Any], **fields: Any) -> Any:
    body = {"model": CHAT_MODEL, "temperature": 0, "max_output_tokens": 24, **fields}
    return client.responses.create(input=items_of(messages), **body)


def test_responses_say_what_chat_says_and_share_its_cache(client: openai.OpenAI) -> None:
    messages = turn(fresh_question(), fresh_png())
    chat = ask(client, messages)
    answer = respond(client, messages, store=True)
    assert answer.output_text == text_of(chat)
    assert (answer.store, answer.vireo["cache"]) == (False, "hit")
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    assert answer.usage.input_tokens_details.image_tokens == image_tokens(224, 224)


def test_response_streams_while_it_is_made(client: openai.OpenAI, chat: ChatSystem) -> None:
    fields = {"max_output_tokens": 48, "extra_body": {"logit_bias": chat.endless()}}
    *events, last = respond(client, turn(fresh_question()), stream=True, **fields)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert "".join(deltas) == last.response.output_text
    assert last.response.usage.output_tokens == 48


def test_response_goes_on_and_keeps_to_a_schema(client: openai.OpenAI) -> None:
    messages = turn(fresh_question(), fresh_png())
    first = respond(client, messages)
    form = {"type": "json_schema", "name": "seen", "schema": SCHEMA, "strict": True}
    items = [*items_of(messages), *first.output, *items_of(turn(fresh_question()))]
    answer = client.responses.create(
        model=CHAT_MODEL,
        instructions="Be brief.",
        input=items,
        text={"format": form},
        max_output_tokens=200,  # type: ignore[arg-type]
    )
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)
    assert answer.usage is not None
    assert answer.usage.input_tokens > first.usage.input_tokens


# -- gRPC --------------------------------------------------------------------------------------------------------------


def test_grpc_says_the_same_as_http(client: openai.OpenAI, other_chat_door: Door) -> None:
    question, image = fresh_question(), fresh_png(448, 224)
    whole = ask(client, turn(question, image))
    # Another tenant's: no cache knows the answer.
    call = grpc_call(other_chat_door, grpc_request(question, image))
    answer = grpc_answer(call)
    assert answer.text == text_of(whole)
    assert answer.end.model == CHAT_MODEL
    assert answer.num_tokens == answer.end.usage.completion_tokens == whole.usage.completion_tokens
    assert answer.end.usage.prompt_tokens == whole.usage.prompt_tokens
    assert answer.end.usage.image_tokens == image_tokens(448, 224)
    assert answer.end.vireo.cache == "miss"


def test_grpc_refuses_what_http_refuses(chat_door: Door, other_chat_door: Door) -> None:
    def failure(door: Door, **sampling: Any) -> Any:
        question = sampling.pop("question", "Read.")
        images = sampling.pop("images", ())
        with pytest.raises(grpc.RpcError) as caught:
            list(grpc_call(door, grpc_request(question, *images, **sampling)))
        answer = grpc_failure(caught.value)
        return answer.status, answer.error

    bad = grpc.StatusCode.INVALID_ARGUMENT
    assert failure(chat_door, images=[png_bomb()]) == (bad, "image_too_large")
    assert failure(chat_door, images=[fresh_png(8, 8)] * (MAX_IMAGES + 1)) == (bad, "too_many_images")
    assert failure(chat_door, question="word " * 2000) == (bad, "context_length_exceeded")
    assert failure(other_chat_door, logprobs=1) == (grpc.StatusCode.PERMISSION_DENIED, "feature_not_allowed")


# -- errors ------------------------------------------------------------------------------------------------------------


_PART = "messages[0].content[0]"


def _url(text: str) -> list[Any]:
    return [{"role": "user", "content": [url_part(text)]}]


_CASES: dict[str, tuple[dict[str, Any], type[openai.APIStatusError], str, str | None]] = {
    "base64": (
        {"messages": _url("data:image/png;base64,!not base64!")},
        openai.BadRequestError,
        "invalid_image",
        _PART,
    ),
    "bomb": ({"messages": turn("Read.", png_bomb())}, openai.APIStatusError, "image_too_large", _PART),
    "junk": ({"messages": turn("Read.", b"junk" * 9)}, openai.APIStatusError, "unsupported_media_type", _PART),
    "many images": (
        {"messages": turn("Read.", *[fresh_png(8, 8)] * (MAX_IMAGES + 1))},
        openai.BadRequestError,
        "too_many_images",
        None,
    ),
    "unknown field": ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "unknown_field", "colour"),
    "unknown budget": ({"extra_body": {"vireo": {"lateny_ms": 5}}}, openai.BadRequestError, "unknown_field", None),
    "salt": ({"extra_body": {"cache_salt": "mine"}}, openai.BadRequestError, "unsupported_field", "cache_salt"),
    "probabilities": (
        {"logprobs": True, "top_logprobs": 5},
        openai.PermissionDeniedError,
        "feature_not_allowed",
        "logprobs",
    ),
    "bias": ({"logit_bias": {"5": 10}}, openai.PermissionDeniedError, "feature_not_allowed", "logit_bias"),
    "long": ({"messages": turn("word " * 2000)}, openai.BadRequestError, "context_length_exceeded", "messages"),
    "http": ({"messages": _url("http://example.org/a.png")}, openai.BadRequestError, "image_url_refused", _PART),
    "unlisted": ({"messages": _url("https://example.org/a.png")}, openai.BadRequestError, "image_url_refused", _PART),
    "private": ({"messages": _url("https://169.254.169.254/x")}, openai.BadRequestError, "image_url_refused", _PART),
    "loopback": ({"messages": _url("https://127.0.0.1:8000/m")}, openai.BadRequestError, "image_url_refused", _PART),
    "model": ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found", "model"),
    "no budget": (
        {"extra_body": {"vireo": {"energy_j": 1e-9}}},
        openai.UnprocessableEntityError,
        "budget_infeasible",
        "vireo",
    ),
}
"""What is asked, and the exception, code and param that it must fail with."""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", sorted(_CASES))
def test_bad_request_is_a_typed_exception_of_the_client(name: str, stream: bool, beta: openai.OpenAI) -> None:
    fields, kind, code, param = _CASES[name]
    with pytest.raises(kind) as caught:
        ask(beta, **{"messages": turn("Read."), "stream": stream, **fields})
    assert caught.value.code == code, caught.value
    assert param is None or caught.value.param == param
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", sorted(set(_CASES) - {"probabilities", "bias"}))
def test_bad_response_is_refused_like_a_bad_chat(name: str, stream: bool, beta: openai.OpenAI) -> None:
    fields, kind, code, param = _CASES[name]
    with pytest.raises(kind) as caught:
        respond(beta, **{"messages": turn("Read."), "stream": stream, **fields})
    assert caught.value.code == code, caught.value
    assert param is None or caught.value.param == param.replace("messages", "input")


def test_wrong_key_is_an_authentication_error(chat: ChatSystem) -> None:
    with chat.client("not-a-key") as stranger, pytest.raises(openai.AuthenticationError) as caught:
        ask(stranger, turn("Read."))
    assert caught.value.code == "invalid_api_key"


def test_nothing_is_left_of_all_that(chat: ChatSystem, client: openai.OpenAI) -> None:
    chat.wait_idle()
    assert text_of(ask(client, turn("Read."), logit_bias=chat.endless()))
    assert chat.engine().metrics.total("vireo_chat_retries_total") == 0
    assert chat.client(ALPHA).models.list().data
