"""The official client's ``responses`` against the front door on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from serving import errors
from serving.domain import ImagePart
from serving.tasks.chat.domain import Role
from tests.support.chat_clients import data_url
from tests.support.clients import GOOD_PNG
from tests.support.fake_service import CHAT_MODEL, WORDS, FakeService
from tests.support.served_door import ServedDoor, served

TEXT = "".join(WORDS)


class Reading(BaseModel):
    word: str
    confidence: float


@pytest.fixture(scope="module")
def door() -> Iterator[ServedDoor]:
    with served(FakeService()) as running:
        yield running


@pytest.fixture
def service(door: ServedDoor) -> Iterator[FakeService]:
    yield door.service
    door.service.words, door.service.chat_errors = WORDS, {}
    door.service.chats.clear()


@pytest.fixture
def client(door: ServedDoor) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def test_answer_has_text_usage_and_report(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.responses.create(
        model=CHAT_MODEL, input="Hello", metadata={"run": "7"}, extra_body={"vireo": {"latency_ms": 500}}
    )
    assert (answer.output_text, answer.status, answer.metadata) == (TEXT, "completed", {"run": "7"})
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10 + len(WORDS)
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert answer.model_extra is not None
    assert answer.model_extra["vireo"]["operating_point"] == "fast"
    assert answer.model_extra["store"] is False
    assert service.chats[0].budget.latency_ms == 500


def test_conversation_goes_on_with_the_items_of_an_answer(client: openai.OpenAI, service: FakeService) -> None:
    service.words = ('{"word": "harbour", "confidence": 0.5}',)
    parts = [{"type": "input_text", "text": "Read"}, {"type": "input_image", "image_url": data_url(GOOD_PNG)}]
    turns: list[Any] = [{"role": "user", "content": parts}]
    answers: list[Any] = [
        client.responses.create(model=CHAT_MODEL, input=turns),
        client.responses.parse(model=CHAT_MODEL, input=turns, text_format=Reading),
    ]
    assert answers[1].output_parsed == Reading(word="harbour", confidence=0.5)
    schema = service.chats[1].sampling.json_schema
    assert schema is not None
    assert '"confidence"' in schema
    for answer in answers:
        for items in (answer.output, [item.model_dump() for item in answer.output]):
            client.responses.create(model=CHAT_MODEL, input=[*turns, *items, {"role": "user", "content": "Sure?"}])
            request = service.chats[-1]
            assert [message.role for message in request.messages] == [Role.USER, Role.ASSISTANT, Role.USER]
            assert isinstance(request.messages[0].parts[1], ImagePart)


def test_events_are_those_that_the_client_knows(client: openai.OpenAI, service: FakeService) -> None:
    events = list(client.responses.create(model=CHAT_MODEL, input="Hello", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == TEXT


def test_helper_gathers_a_stream_and_parses_it(client: openai.OpenAI, service: FakeService) -> None:
    service.words = ('{"word": "har', 'bour", ', '"confidence": 0.5}')
    with client.responses.stream(model=CHAT_MODEL, input="Hello", text_format=Reading) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert answer.output_parsed == Reading(word="harbour", confidence=0.5)
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_answer_that_is_cut_off_is_incomplete(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.responses.create(model=CHAT_MODEL, input="Hello", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    *_, last = client.responses.create(model=CHAT_MODEL, input="Hello", max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"


def test_refusals_are_typed(client: openai.OpenAI, service: FakeService) -> None:
    refused: list[dict[str, Any]] = [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"tools": [{"type": "web_search"}]},
    ]
    for fields in refused:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=CHAT_MODEL, input="Hello", **fields)
        assert (caught.value.code, caught.value.param) == ("unsupported_field", next(iter(fields)))
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="absent", input="Hello")
    assert missing.value.code == "model_not_found"
    assert CHAT_MODEL in missing.value.message


def test_error_in_the_middle_of_a_stream_is_raised_after_the_text_before_it(
    client: openai.OpenAI, service: FakeService
) -> None:
    service.chat_errors[2] = errors.ReplicaLost("the replica died")
    texts: list[str] = []

    def read() -> None:
        for event in client.responses.create(model=CHAT_MODEL, input="Hello", stream=True):
            texts.append(event.delta if event.type == "response.output_text.delta" else "")  # noqa: PERF401

    with pytest.raises(openai.APIError, match="the replica died") as caught:
        read()
    assert "".join(texts) == "".join(WORDS[:2])
    assert caught.value.code == "replica_lost"
