"""Chat and Responses over HTTP, whole and streamed, and chat over gRPC: the same requests, limits and answers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
from grpc import StatusCode

from serving import errors
from serving.domain import GuardBlock, ImagePart
from serving.errors import ServingError
from serving.front.auth import Authenticator
from serving.front.status import TABLE
from serving.limits import IngressLimits
from serving.tasks.chat.domain import Role, TextPart
from tests.support.chat_clients import CHAT_SURFACES, HELLO, ONE_ANSWER, Chat, ChatOutcome, Turn, Url
from tests.support.clients import GOOD_PNG, FrontDoor
from tests.support.fake_service import CHAT_MODEL, MODEL, WORDS, FakeService

STATUS_OF_CODE = {cls.code: status for cls, status in TABLE.items()}
TEXT = "".join(WORDS)
BAD, LONG = "invalid_request", "context_length_exceeded"
KEYS = {name: hashlib.sha256(f"key-of-{name}".encode()).hexdigest() for name in ("ada", "bob")}
ADA, BOB = {"x-api-key": "key-of-ada"}, {"x-api-key": "key-of-bob"}


@pytest.fixture(params=sorted(CHAT_SURFACES))
def surface(request: pytest.FixtureRequest) -> Any:
    return CHAT_SURFACES[request.param]


@pytest.fixture(params=sorted(set(CHAT_SURFACES) - ONE_ANSWER))
def choosing(request: pytest.FixtureRequest) -> Any:
    """A surface on which several answers can be asked for."""
    return CHAT_SURFACES[request.param]


def assert_refused(outcome: ChatOutcome, code: str) -> None:
    assert outcome.error == code, outcome
    status = STATUS_OF_CODE[code]
    assert outcome.status == (status.grpc if isinstance(outcome.status, StatusCode) else status.http)
    assert len(outcome.message) > 15


def user(*parts: Any) -> list[Turn]:
    return [Turn("user", list(parts))]


def nested(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


def test_nested_counts_itself() -> None:
    assert nested(1) == {}
    assert nested(3) == {"not": {"not": {}}}


# -- what reaches the service, and what comes back -------------------------------------------------------------------


async def test_conversation_reaches_the_service_as_it_is(surface: Any) -> None:
    door = FrontDoor()
    turns = [
        Turn("system", ["Be brief."]),
        Turn("user", ["What is ", GOOD_PNG, "and", Url("https://example.org/a.png")]),
        Turn("assistant", ["A gradient."]),
        Turn("user", ["Are you sure? <|im_end|> 你好"]),
    ]
    chat = Chat(
        turns,
        max_tokens=7,
        min_tokens=5,
        ignore_eos=True,
        temperature=0.5,
        top_p=0.9,
        stop=["\n", "END"],
        seed=2**40,
        latency_ms=900,
    )
    assert (await surface(door, chat)).error is None
    (request,) = door.service.chats
    assert [message.role for message in request.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.USER]
    first, image, second, linked = request.messages[1].parts
    assert (first, second) == (TextPart("What is "), TextPart("and"))
    assert isinstance(image, ImagePart)
    assert isinstance(linked, ImagePart)
    assert (image.encoded, image.url) == (GOOD_PNG, None)
    assert (linked.encoded, linked.url) == (None, "https://example.org/a.png")
    assert image.param.startswith(("messages[1].", "input[1]."))
    assert image.param.endswith("[1]")
    assert request.messages[3].parts == (TextPart("Are you sure? <|im_end|> 你好"),)
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)
    assert (sampling.min_tokens, sampling.ignore_eos) == (5, True)
    assert (sampling.stop, sampling.seed, sampling.n) == (("\n", "END"), 2**40, 1)
    assert (sampling.json_schema, sampling.logprobs, dict(sampling.logit_bias)) == (None, None, {})
    assert request.budget.latency_ms == 900
    assert (request.tenant, request.model) == ("local", CHAT_MODEL)


async def test_answer_has_text_reasons_usage_and_report(surface: Any) -> None:
    door = FrontDoor()
    outcome = await surface(door, Chat(user("Look", GOOD_PNG)))
    assert outcome.texts == (TEXT,)
    assert outcome.reasons == ("stop",)
    assert outcome.usage == {"prompt_tokens": 26, "completion_tokens": 5, "image_tokens": 16, "cached_tokens": 4}
    assert outcome.operating_point == "fast"


VERDICTS: dict[str, GuardBlock] = {
    "none": {},
    "normal": {"score": 0.5, "action": "normal", "reasons": []},
    "capped": {"score": 0.999, "action": "capped", "reasons": ["length", "confirmed"]},
}


@pytest.mark.parametrize("name", VERDICTS)
async def test_every_surface_tells_the_guards_verdict(name: str, surface: Any) -> None:
    door = FrontDoor()
    door.service.report = replace(door.service.report, guard=VERDICTS[name])
    assert (await surface(door, Chat(user("Look", GOOD_PNG)))).guard == VERDICTS[name]


async def test_several_answers_are_bounded(choosing: Any) -> None:
    door = FrontDoor(limits=SMALL)
    outcome = await choosing(door, Chat(n=2))
    assert (outcome.texts, outcome.reasons) == ((TEXT, TEXT), ("stop", "stop"))
    assert outcome.usage["completion_tokens"] == 10
    assert (await choosing(door, Chat(n=8))).error is None
    for number in (0, 9):
        outcome = await choosing(door, Chat(n=number))
        assert_refused(outcome, BAD)
        assert (outcome.param or "").endswith("n")


async def test_answer_of_no_text_is_an_answer(surface: Any) -> None:
    outcome = await surface(FrontDoor(FakeService(words=())), Chat())
    assert (outcome.texts, outcome.reasons) == (("",), ("stop",))


async def test_schema_reaches_the_service_compact(surface: Any) -> None:
    door = FrontDoor()
    schema = {"type": "object", "properties": {"größe": {"type": "number", "minimum": 0.5}}, "required": ["größe"]}
    assert (await surface(door, Chat(schema=schema))).error is None
    assert door.service.chats[0].sampling.json_schema == (
        '{"type":"object","properties":{"größe":{"type":"number","minimum":0.5}},"required":["größe"]}'
    )


async def test_half_a_character_of_the_engine_does_not_break_the_answer(surface: Any) -> None:
    outcome = await surface(FrontDoor(FakeService(words=("ok ", "\ud83d", "!"))), Chat())
    assert outcome.texts == ("ok ?!",)


# -- limits and ranges -----------------------------------------------------------------------------------------------

SMALL = IngressLimits(
    max_body_bytes=400_000,
    max_images=3,
    max_bytes_per_image=20_000,
    max_messages=4,
    max_parts=6,
    max_text_chars=1_000,
    max_schema_bytes=500,
    max_schema_depth=6,
    max_schema_properties=5,
    max_logit_bias=3,
)
PROPERTIES: dict[str, Any] = {f"p{index}": {} for index in range(5)}

WITHIN: dict[str, Chat] = {
    "messages": Chat([Turn("user", ["x"])] * 4),
    "parts": Chat(user(*["x"] * 6)),
    "two_systems": Chat([Turn("system", ["x"]), Turn("system", ["y"]), *HELLO]),
    "chars": Chat(user("x" * 999, "é")),
    "images": Chat(user(*[GOOD_PNG] * 3)),
    "image_bytes": Chat(user(bytes(19_998))),
    "stop_count": Chat(stop=["a", "b", "c", "d"]),
    "stop_chars": Chat(stop=["x" * 64]),
    "temperature_0": Chat(temperature=0),
    "temperature_2": Chat(temperature=2),
    "top_p": Chat(top_p=1),
    "seed": Chat(seed=2**63 - 1),
    "seed_0": Chat(seed=0),
    "max_tokens": Chat(max_tokens=2**31 - 1),
    "min_tokens": Chat(min_tokens=2**31 - 1),
    "min_is_max": Chat(min_tokens=3, max_tokens=3, ignore_eos=True),
    "schema_depth": Chat(schema=nested(6)),
    "schema_properties": Chat(schema={"properties": PROPERTIES}),
    "schema_bytes": Chat(schema={"description": "x" * (500 - len('{"description":""}'))}),
    "url": Chat(user(Url("https://e.org/" + "x" * (2048 - 14)))),
}

BEYOND: dict[str, tuple[Chat, str, str]] = {
    "messages": (Chat([Turn("user", ["x"])] * 5), BAD, "messages"),
    "no_messages": (Chat([]), BAD, "messages"),
    "no_parts": (Chat([Turn("user", [])]), BAD, "messages[0]"),
    "parts": (Chat(user(*["x"] * 7)), BAD, "messages[0]"),
    "parts_of_all": (Chat([Turn("user", ["x"] * 4)] * 2), BAD, "messages[1]"),
    "chars": (Chat(user("x" * 1_001)), LONG, "messages[0]"),
    "chars_of_all": (Chat([Turn("user", ["x" * 501])] * 2), LONG, "messages[1]"),
    "images": (Chat(user(*[GOOD_PNG] * 4)), "too_many_images", "messages[0]"),
    "images_of_all": (Chat([Turn("user", [GOOD_PNG] * 2)] * 2), "too_many_images", "messages[1]"),
    "urls": (Chat(user(*[Url("https://e.org/a")] * 4)), "too_many_images", "messages[0]"),
    "image_bytes": (Chat(user(bytes(20_010))), "image_too_large", "messages[0]"),
    "no_image": (Chat(user("x", b"")), "invalid_image", "messages[0]"),
    "body": (Chat(user(bytes(400_000))), "payload_too_large", ""),
    "system_late": (Chat([*HELLO, Turn("system", ["x"])]), BAD, "messages[1].role"),
    "no_such_role": (Chat([Turn("judge", ["x"])]), BAD, "messages[0].role"),
    "system_image": (Chat([Turn("system", [GOOD_PNG])]), BAD, "messages[0]"),
    "assistant_image": (Chat([Turn("assistant", [GOOD_PNG])]), BAD, "messages[0]"),
    "assistant_url": (Chat([Turn("assistant", [Url("https://e.org/a")])]), BAD, "messages[0]"),
    "http": (Chat(user(Url("http://e.org/a.png"))), "image_url_refused", "messages[0]"),
    "file": (Chat(user(Url("file:///etc/passwd"))), "image_url_refused", "messages[0]"),
    "no_scheme": (Chat(user(Url("//e.org/a.png"))), "image_url_refused", "messages[0]"),
    "no_url": (Chat(user(Url("x"))), "image_url_refused", "messages[0]"),
    "long_url": (Chat(user(Url("https://e.org/" + "x" * 2048))), "image_url_refused", "messages[0]"),
    "stop_count": (Chat(stop=["a", "b", "c", "d", "e"]), BAD, "stop"),
    "stop_chars": (Chat(stop=["x" * 65]), BAD, "stop"),
    "stop_empty": (Chat(stop=["x", ""]), BAD, "stop"),
    "temperature": (Chat(temperature=2.001), BAD, "temperature"),
    "temperature_negative": (Chat(temperature=-0.001), BAD, "temperature"),
    "temperature_nan": (Chat(temperature=math.nan), BAD, "temperature"),
    "temperature_infinite": (Chat(temperature=math.inf), BAD, "temperature"),
    "top_p_0": (Chat(top_p=0), BAD, "top_p"),
    "top_p": (Chat(top_p=1.001), BAD, "top_p"),
    "top_p_nan": (Chat(top_p=math.nan), BAD, "top_p"),
    "seed": (Chat(seed=-1), BAD, "seed"),
    "max_tokens": (Chat(max_tokens=0), BAD, "max_tokens"),
    "max_tokens_huge": (Chat(max_tokens=2**31), BAD, "max_tokens"),
    "min_above_max": (Chat(min_tokens=4, max_tokens=3), BAD, "min_tokens"),
    "min_tokens_huge": (Chat(min_tokens=2**31), BAD, "min_tokens"),
    "min_tokens_of_json": (Chat(min_tokens=1, schema={}), BAD, "min_tokens"),
    "endless_json": (Chat(ignore_eos=True, schema={}), BAD, "ignore_eos"),
    "schema_depth": (Chat(schema=nested(7)), BAD, "schema"),
    "schema_properties": (Chat(schema={"properties": PROPERTIES | {"q": {}}}), BAD, "schema"),
    "schema_nested_properties": (Chat(schema={"properties": {"a": {"properties": PROPERTIES}}}), BAD, "schema"),
    "schema_bytes": (Chat(schema={"description": "x" * (501 - len('{"description":""}'))}), BAD, "schema"),
    "schema_bytes_wide": (Chat(schema={"description": "é" * 250}), BAD, "schema"),
    "schema_list": (Chat(schema=[]), BAD, "schema"),
    "schema_nan": (Chat(schema={"minimum": math.nan}), BAD, "schema"),
    "schema_infinite": (Chat(schema={"enum": [-math.inf]}), BAD, "schema"),
    "budget_nan": (Chat(latency_ms=math.nan), BAD, "vireo.latency_ms"),
    "budget_negative": (Chat(latency_ms=-1), BAD, "vireo.latency_ms"),
    "long_model": (Chat(model="x" * 300), BAD, "model"),
    "unknown_model": (Chat(model="none"), "model_not_found", "model"),
    "classifier": (Chat(model=MODEL), "model_not_found", "model"),
}


@pytest.mark.parametrize("name", WITHIN)
async def test_request_at_the_limit_is_served(name: str, surface: Any) -> None:
    outcome = await surface(FrontDoor(limits=SMALL), WITHIN[name])
    assert outcome.error is None, outcome


@pytest.mark.parametrize("name", BEYOND)
async def test_request_beyond_the_limit_is_refused_naming_the_field(name: str, surface: Any) -> None:
    chat, code, param = BEYOND[name]
    door = FrontDoor(limits=SMALL)
    outcome = await surface(door, chat)
    assert_refused(outcome, code)
    assert param in (outcome.param or "")
    assert not door.service.chats
    assert (await surface(door, Chat())).texts == (TEXT,)


# -- keys and permissions --------------------------------------------------------------------------------------------


@pytest.fixture
def keyed() -> FrontDoor:
    return FrontDoor(authenticator=Authenticator(KEYS, False, logprobs_tenants=["ada"]))


async def test_caller_without_a_key_is_refused(surface: Any, keyed: FrontDoor) -> None:
    assert_refused(await surface(keyed, Chat()), "invalid_api_key")
    assert (await surface(keyed, Chat(headers=BOB))).error is None
    assert keyed.service.chats[0].tenant == "bob"


CLOSED = {
    "logprobs": Chat(logprobs=2, headers=BOB),
    "logprobs_of_the_chosen": Chat(logprobs=0, headers=BOB),
    "logit_bias": Chat(logit_bias={5: 1.0}, headers=BOB),
}


@pytest.mark.parametrize("name", CLOSED)
async def test_probabilities_are_closed_and_the_error_says_why(name: str, surface: Any, keyed: FrontDoor) -> None:
    outcome = await surface(keyed, CLOSED[name])
    assert_refused(outcome, "feature_not_allowed")
    assert "black-box attacks" in outcome.message
    assert not keyed.service.chats


async def test_probabilities_are_open_to_the_tenants_that_the_operator_trusts(surface: Any, keyed: FrontDoor) -> None:
    outcome = await surface(keyed, Chat(logprobs=3, logit_bias={5: -100.0}, headers=ADA))
    assert outcome.logprobs == WORDS
    sampling = keyed.service.chats[0].sampling
    assert (sampling.logprobs, dict(sampling.logit_bias)) == (3, {5: -100.0})


async def test_probabilities_of_answers_about_images_need_a_right_of_their_own(surface: Any, keyed: FrontDoor) -> None:
    refused = await surface(keyed, Chat(user("Look", GOOD_PNG), logprobs=1, headers=ADA))
    assert_refused(refused, "feature_not_allowed")
    assert "image_logprobs" in refused.message
    assert not keyed.service.chats
    door = FrontDoor(
        authenticator=Authenticator(KEYS, False, logprobs_tenants=["ada"], image_logprobs_tenants=["ada", "bob"])
    )
    assert (await surface(door, Chat(user("Look", GOOD_PNG), logprobs=1, headers=ADA))).logprobs == WORDS
    closed = await surface(door, Chat(user("Look", GOOD_PNG), logprobs=1, headers=BOB))
    assert "allow_logprobs" in closed.message, "the right to images alone opens nothing"


BAD_PROBABILITIES = {
    "many": Chat(logprobs=21, headers=ADA),
    "bias_over": Chat(logit_bias={5: 100.1}, headers=ADA),
    "bias_nan": Chat(logit_bias={5: math.nan}, headers=ADA),
    "biases": Chat(logit_bias=dict.fromkeys(range(301), 1.0), headers=ADA),
    "token": Chat(logit_bias={2**31: 1.0}, headers=ADA),
}


@pytest.mark.parametrize("name", BAD_PROBABILITIES)
async def test_trusted_tenants_have_limits_too(name: str, surface: Any, keyed: FrontDoor) -> None:
    assert_refused(await surface(keyed, BAD_PROBABILITIES[name]), BAD)


# -- failures --------------------------------------------------------------------------------------------------------

ERRORS = [
    errors.QueueFull("the queue is full", retry_after_s=2.5),
    errors.InvalidRequest("the prompt has 3000 tokens; the limit is 2048", param="messages"),
    errors.BudgetInfeasible("no operating point fits"),
    errors.DeadlineExceeded("the deadline passed"),
    errors.EngineFailed("the engine has died"),
    errors.ImageUrlRefused("host is not on the list", param="messages[0].content[1]"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
async def test_error_before_the_first_token_is_that_of_the_call(error: ServingError, surface: Any) -> None:
    door = FrontDoor(FakeService(chat_errors={0: error}))
    outcome = await surface(door, Chat())
    assert_refused(outcome, error.code)
    assert (outcome.message, outcome.param) == (error.message, error.param)
    assert door.calls.finished[0].outcome == error.code


async def test_internal_text_never_reaches_the_caller(surface: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = await surface(FrontDoor(FakeService(chat_errors={0: RuntimeError("secret path")})), Chat())
    assert_refused(outcome, "internal_error")
    assert "secret" not in outcome.message
    assert "secret" in "".join(capsys.readouterr()), "the operator must find it in the log"


async def test_metrics_hear_of_every_chat_once(surface: Any) -> None:
    door = FrontDoor()
    await surface(door, Chat())
    await surface(door, Chat(seed=-1))
    await surface(door, Chat(model="none"))
    assert door.calls.in_flight == 0
    calls = [(call.model, call.tenant, call.outcome) for call in door.calls.finished]
    assert calls == [
        (CHAT_MODEL, "local", "ok"),
        ("unknown", "local", BAD),
        ("unknown", "local", "model_not_found"),
    ]
    assert {call.surface.value for call in door.calls.finished} <= {"http_chat", "grpc_chat", "http_responses"}
