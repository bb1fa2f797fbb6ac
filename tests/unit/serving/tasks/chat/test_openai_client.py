"""The official ``openai`` client against the front door on a real socket."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import uvicorn
from pydantic import BaseModel

from serving import errors
from serving.domain import ImagePart
from serving.front.auth import Authenticator
from tests.support.chat_clients import data_url, image_part
from tests.support.clients import GOOD_PNG, FrontDoor
from tests.support.fake_service import CHAT_MODEL, MODEL, WORDS
from tests.support.waiting import until

TEXT = "".join(WORDS)
HELLO: Any = [{"role": "user", "content": "Hello"}]
KEYS = {name: hashlib.sha256(f"key-of-{name}".encode()).hexdigest() for name in ("ada", "bob")}
Served = tuple[FrontDoor, openai.AsyncOpenAI]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    door = FrontDoor(authenticator=Authenticator(KEYS, False, logprobs_tenants=["ada"]))
    config = uvicorn.Config(door.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="key-of-ada", max_retries=0
    ) as client:
        yield door, client
    server.should_exit = True
    await running


async def test_chat(served: Served) -> None:
    door, client = served
    answer = await client.chat.completions.create(
        model=CHAT_MODEL, messages=HELLO, extra_body={"vireo": {"latency_ms": 500}}
    )
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10 + len(WORDS)
    assert answer.model_extra is not None
    assert answer.model_extra["vireo"]["operating_point"] == "fast"
    assert door.service.chats[0].budget.latency_ms == 500
    assert door.service.chats[0].tenant == "ada"


async def test_answer_may_be_sent_back_as_it_came(served: Served) -> None:
    door, client = served
    answer = await client.chat.completions.create(model=CHAT_MODEL, messages=HELLO)
    said: Any = answer.choices[0].message
    for turn in (said, said.model_dump()):
        await client.chat.completions.create(model=CHAT_MODEL, messages=[*HELLO, turn, *HELLO])
    assert [len(request.messages) for request in door.service.chats] == [1, 3, 3]


async def test_stream_with_usage(served: Served) -> None:
    _door, client = served
    stream = await client.chat.completions.create(
        model=CHAT_MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(WORDS)


async def test_helper_that_gathers_a_stream(served: Served) -> None:
    _door, client = served
    async with client.chat.completions.stream(model=CHAT_MODEL, messages=HELLO, n=2) as stream:
        answer = await stream.get_final_completion()
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]


async def test_images(served: Served) -> None:
    door, client = served
    parts = [{"type": "text", "text": "Read"}, image_part(data_url(GOOD_PNG), detail="high")]
    parts += [image_part(data_url(bytes(2_000_000))), image_part("https://example.org/a.png")]
    messages: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = await client.chat.completions.create(model=CHAT_MODEL, messages=messages)
    images = [part for part in door.service.chats[0].messages[1].parts if isinstance(part, ImagePart)]
    assert [image.encoded for image in images] == [GOOD_PNG, bytes(2_000_000), None]
    assert images[2].url == "https://example.org/a.png"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 68


class Reading(BaseModel):
    word: str
    confidence: float


async def test_schema_of_a_pydantic_model(served: Served) -> None:
    door, client = served
    door.service.words = ('{"word": "har', 'bour", ', '"confidence": 0.5}')
    answer = await client.chat.completions.parse(model=CHAT_MODEL, messages=HELLO, response_format=Reading)
    assert answer.choices[0].message.parsed == Reading(word="harbour", confidence=0.5)
    schema = door.service.chats[0].sampling.json_schema
    assert schema is not None
    assert '"confidence"' in schema


async def test_probabilities(served: Served) -> None:
    _door, client = served
    answer = await client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, logprobs=True, top_logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.token for entry in logprobs.content] == list(WORDS)


async def test_models(served: Served) -> None:
    _door, client = served
    assert [model.id async for model in client.models.list()] == [CHAT_MODEL, MODEL]
    assert (await client.models.retrieve(CHAT_MODEL)).owned_by == "vireo"


FAILURES: list[tuple[errors.ServingError, type[openai.APIStatusError]]] = [
    (errors.InvalidRequest("the prompt is too long", param="messages"), openai.BadRequestError),
    (errors.FeatureNotAllowed("closed to this tenant"), openai.PermissionDeniedError),
    (errors.UnknownModel("no such model", param="model"), openai.NotFoundError),
    (errors.BudgetInfeasible("no operating point fits"), openai.UnprocessableEntityError),
    (errors.QueueFull("the queue is full", retry_after_s=1.0), openai.RateLimitError),
    (errors.EngineFailed("the engine has died"), openai.InternalServerError),
    (errors.DeadlineExceeded("the deadline passed"), openai.InternalServerError),
]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("error", "cls"), FAILURES, ids=[error.code for error, _ in FAILURES])
async def test_error_is_of_the_class_that_clients_catch(
    error: errors.ServingError, cls: type[openai.APIStatusError], is_streamed: bool, served: Served
) -> None:
    door, client = served
    door.service.chat_errors[0] = error
    with pytest.raises(cls) as caught:
        await client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=is_streamed)
    assert (caught.value.code, caught.value.param, caught.value.type) == (error.code, error.param, error.type)
    assert caught.value.request_id


async def test_wrong_key_and_wrong_field(served: Served) -> None:
    _door, client = served
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").chat.completions.create(model=CHAT_MODEL, messages=HELLO)
    with pytest.raises(openai.PermissionDeniedError, match="black-box"):
        await client.with_options(api_key="key-of-bob").chat.completions.create(
            model=CHAT_MODEL, messages=HELLO, logprobs=True
        )
    with pytest.raises(openai.BadRequestError, match="cache_salt"):
        await client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, extra_body={"cache_salt": "x"})


async def test_error_in_the_middle_of_a_stream_is_raised_after_the_text_before_it(served: Served) -> None:
    door, client = served
    door.service.chat_errors[2] = errors.ReplicaLost("the replica died")
    stream = await client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True)
    texts: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401

    with pytest.raises(openai.APIError, match="the replica died") as caught:
        await read()
    assert "".join(texts) == "".join(WORDS[:2])
    assert caught.value.code == "replica_lost"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_client_that_hangs_up_ends_the_work(is_streamed: bool, served: Served) -> None:
    door, client = served
    door.service.chat_gates[2 if is_streamed else 0] = asyncio.Event()
    if is_streamed:
        stream = await client.chat.completions.create(model=CHAT_MODEL, messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
    else:
        asking = asyncio.create_task(client.chat.completions.create(model=CHAT_MODEL, messages=HELLO))
        await door.service.entered.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await until(lambda: not door.service.chats_open)
    assert door.service.chats_cut == 1
