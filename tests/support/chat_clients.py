"""Three ways to ask the front door to chat, with one answer shape for all. No test logic."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from grpc import StatusCode
from vireo_pb.vireo.v1 import vireo_pb2

from tests.support.clients import FakeContext, FrontDoor, HttpReply, context_outcome
from tests.support.fake_service import CHAT_MODEL

CHAT_PATH = "/v1/chat/completions"
RESPONSES_PATH = "/v1/responses"


@dataclass(frozen=True)
class Url:
    """An image by its address."""

    url: str


Piece = str | bytes | Url


@dataclass(frozen=True)
class Turn:
    """A message: words, encoded images, addresses of images."""

    role: str
    parts: Sequence[Piece]


HELLO = (Turn("user", ["Hello"]),)


@dataclass(frozen=True)
class Chat:
    """A chat call, before it is spelt for a surface."""

    turns: Sequence[Turn] = HELLO
    model: str | None = CHAT_MODEL
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    n: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    schema: Any = None
    logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    latency_ms: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatOutcome:
    """What came of it. ``texts`` by choice; ``error`` is the code of the whole call's error, or None."""

    error: str | None
    status: int | StatusCode
    message: str = ""
    param: str | None = None
    texts: tuple[str, ...] = ()
    reasons: tuple[str | None, ...] = ()
    usage: Mapping[str, int] = field(default_factory=dict)
    operating_point: str = ""
    guard: Mapping[str, Any] = field(default_factory=dict)
    logprobs: tuple[str, ...] = ()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def _json_part(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return image_part(data_url(piece) if isinstance(piece, bytes) else piece.url)


def document_of(chat: Chat) -> dict[str, Any]:
    """The JSON body of a call."""
    messages = [{"role": turn.role, "content": [_json_part(part) for part in turn.parts]} for turn in chat.turns]
    document: dict[str, Any] = {"model": chat.model, "messages": messages}
    for name in ("max_tokens", "temperature", "top_p", "seed", "n", "min_tokens", "ignore_eos"):
        if getattr(chat, name) is not None:
            document[name] = getattr(chat, name)
    if chat.stop:
        document["stop"] = list(chat.stop)
    if chat.schema is not None:
        document["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": chat.schema}}
    if chat.logprobs is not None:
        document |= {"logprobs": True, "top_logprobs": chat.logprobs}
    if chat.logit_bias is not None:
        document["logit_bias"] = {str(token): bias for token, bias in chat.logit_bias.items()}
    if chat.latency_ms is not None:
        document["vireo"] = {"latency_ms": chat.latency_ms}
    return document


class Line:
    """One HTTP connection to an ASGI application: a request, what was sent back, and a client that can leave.

    ``can_send``: cleared, it stands for a socket that is full; ``stuck`` is set once something waits for it.
    """

    def __init__(self, body: bytes, headers: Mapping[str, str] | None = None, path: str = CHAT_PATH) -> None:
        self._path = path
        self._chunks = [body]
        self.headers = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        self.sent: list[Any] = []
        self.left = asyncio.Event()
        self.can_send = asyncio.Event()
        self.can_send.set()
        self.stuck = asyncio.Event()
        self._news = asyncio.Condition()

    async def run(self, app: Callable[..., Awaitable[None]]) -> HttpReply:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in self.headers.items()],
            "client": ("127.0.0.1", 4711),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await app(scope, self._receive, self._send)
        start = self.sent[0]
        return HttpReply(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, self.body)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is not True

    async def until(self, word: bytes) -> None:
        """Wait until ``word`` has been sent."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: word in self.body)

    async def _receive(self) -> dict[str, Any]:
        if self._chunks:
            return {"type": "http.request", "body": self._chunks.pop(), "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if not self.can_send.is_set():
            self.stuck.set()
            await self.can_send.wait()
        self.sent.append(message)
        async with self._news:
            self._news.notify_all()


async def post_chat(door: FrontDoor, document: Any, path: str = CHAT_PATH, **headers: str) -> HttpReply:
    """Send a body as it is, or as JSON."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return await Line(body, headers, path).run(door.app)


def events_of(body: bytes) -> list[Any]:
    """The data of server-sent events; comments are left out, and the shape of each event is checked."""
    events = []
    assert body.endswith(b"\n\n")
    for event in body[:-2].split(b"\n\n"):
        assert b"\n" not in event
        if event.startswith(b":"):
            continue
        assert event.startswith(b"data: ")
        data = event.removeprefix(b"data: ")
        events.append("[DONE]" if data == b"[DONE]" else orjson.loads(data))
    return events


async def http_whole(door: FrontDoor, chat: Chat) -> ChatOutcome:
    reply = await post_chat(door, document_of(chat), **chat.headers)
    if reply.status != 200:
        return _failed(reply)
    document = reply.json
    return ChatOutcome(
        None,
        200,
        texts=tuple(choice["message"]["content"] for choice in document["choices"]),
        reasons=tuple(choice["finish_reason"] for choice in document["choices"]),
        usage=_flat(document["usage"]),
        operating_point=document["vireo"]["operating_point"],
        guard=document["vireo"]["guard"],
        logprobs=tuple(_tokens(document["choices"][0])),
    )


async def http_stream(door: FrontDoor, chat: Chat) -> ChatOutcome:
    body = document_of(chat) | {"stream": True, "stream_options": {"include_usage": True}}
    reply = await post_chat(door, body, **chat.headers)
    if reply.status != 200:
        return _failed(reply)
    *chunks, last, done = events_of(reply.body)
    assert done == "[DONE]"
    assert last["choices"] == []
    texts = [""] * (chat.n or 1)
    reasons: list[str | None] = [None] * (chat.n or 1)
    logprobs: list[str] = []
    for chunk in chunks:
        assert chunk["usage"] is None
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons[choice["index"]] = choice["finish_reason"]
        logprobs += _tokens(choice) if choice["index"] == 0 else []
    return ChatOutcome(
        None,
        200,
        texts=tuple(texts),
        reasons=tuple(reasons),
        usage=_flat(last["usage"]),
        operating_point=last["vireo"]["operating_point"],
        guard=last["vireo"]["guard"],
        logprobs=tuple(logprobs),
    )


def _tokens(choice: Any) -> list[str]:
    return [entry["token"] for entry in (choice["logprobs"] or {"content": []})["content"]]


def _flat(usage: Any) -> dict[str, int]:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    flat = {name: value for name, value in usage.items() if name.endswith("_tokens") and name != "total_tokens"}
    return {**flat, **usage["prompt_tokens_details"]}


def _failed(reply: HttpReply) -> ChatOutcome:
    error = reply.error
    return ChatOutcome(error["code"], reply.status, error["message"], error["param"])


def response_document_of(chat: Chat) -> dict[str, Any]:
    """The JSON body of a call of Responses."""
    document = document_of(replace(chat, turns=(), schema=None, logprobs=None))
    del document["messages"]
    document["input"] = [
        {"role": turn.role, "content": [_item_part(turn, p) for p in turn.parts]} for turn in chat.turns
    ]
    if chat.max_tokens is not None:
        document["max_output_tokens"] = document.pop("max_tokens")
    if chat.schema is not None:
        document["text"] = {"format": {"type": "json_schema", "name": "s", "schema": chat.schema}}
    if chat.logprobs is not None:
        document |= {"include": ["message.output_text.logprobs"], "top_logprobs": chat.logprobs}
    return document


def _item_part(turn: Turn, piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "output_text" if turn.role == "assistant" else "input_text", "text": piece}
    return {"type": "input_image", "image_url": data_url(piece) if isinstance(piece, bytes) else piece.url}


async def responses_whole(door: FrontDoor, chat: Chat) -> ChatOutcome:
    reply = await post_chat(door, response_document_of(chat), RESPONSES_PATH, **chat.headers)
    return _responded(reply.json) if reply.status == 200 else _in_chats_words(_failed(reply))


async def responses_stream(door: FrontDoor, chat: Chat) -> ChatOutcome:
    """The events must say what the last one does."""
    reply = await post_chat(door, response_document_of(chat) | {"stream": True}, RESPONSES_PATH, **chat.headers)
    if reply.status != 200:
        return _in_chats_words(_failed(reply))
    events = response_events_of(reply.body)
    outcome = _responded(events[-1]["response"])
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == outcome.texts[0]
    assert tuple(entry["token"] for event in deltas for entry in event["logprobs"]) == outcome.logprobs
    return outcome


def response_events_of(body: bytes) -> list[Any]:
    """The events of a stream of Responses: each is named as its data says, and all are numbered."""
    events = []
    for event in body.removesuffix(b"\n\n").split(b"\n\n"):
        if event.startswith(b":"):
            continue
        name, data = event.split(b"\n")
        events.append(orjson.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + events[-1]["type"].encode()
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def _responded(answer: Any) -> ChatOutcome:
    (item,) = answer["output"]
    (part,) = item["content"]
    usage = answer["usage"]
    assert (item["type"], part["type"], item["status"]) == ("message", "output_text", answer["status"])
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    details = {name: usage["input_tokens_details"][name] for name in ("image_tokens", "cached_tokens")}
    return ChatOutcome(
        None,
        200,
        texts=(part["text"],),
        reasons=("stop" if answer["status"] == "completed" else "length",),
        usage={"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"], **details},
        operating_point=answer["vireo"]["operating_point"],
        guard=answer["vireo"]["guard"],
        logprobs=tuple(entry["token"] for entry in part["logprobs"]),
    )


def _in_chats_words(outcome: ChatOutcome) -> ChatOutcome:
    param = (outcome.param or "").replace("max_output_tokens", "max_tokens").replace("input", "messages")
    return replace(outcome, param=param or None)


_ROLES = {
    "system": vireo_pb2.CHAT_ROLE_SYSTEM,
    "user": vireo_pb2.CHAT_ROLE_USER,
    "assistant": vireo_pb2.CHAT_ROLE_ASSISTANT,
}


def message_of(chat: Chat) -> vireo_pb2.ChatRequest:
    """The gRPC message of a call."""
    turns = [
        vireo_pb2.ChatMessage(
            role=_ROLES.get(turn.role, vireo_pb2.CHAT_ROLE_UNSPECIFIED),
            parts=[_proto_part(part) for part in turn.parts],
        )
        for turn in chat.turns
    ]
    sampling = vireo_pb2.Sampling(
        max_tokens=chat.max_tokens,
        min_tokens=chat.min_tokens or 0,
        ignore_eos=bool(chat.ignore_eos),
        temperature=chat.temperature,
        top_p=chat.top_p,
        stop=chat.stop,
        seed=chat.seed,
        n=chat.n,
        json_schema=None if chat.schema is None else json.dumps(chat.schema),
        logprobs=chat.logprobs,
        logit_bias=chat.logit_bias,
    )
    return vireo_pb2.ChatRequest(
        model=chat.model,
        messages=turns,
        sampling=sampling,
        vireo=None if chat.latency_ms is None else vireo_pb2.Budget(latency_ms=chat.latency_ms),
    )


def _proto_part(piece: Piece) -> vireo_pb2.ChatPart:
    if isinstance(piece, str):
        return vireo_pb2.ChatPart(text=piece)
    return vireo_pb2.ChatPart(image=piece) if isinstance(piece, bytes) else vireo_pb2.ChatPart(image_url=piece.url)


async def grpc_chat(door: FrontDoor, chat: Chat) -> ChatOutcome:
    context = FakeContext(list(chat.headers.items()))
    responses = [response async for response in door.grpc.Chat(message_of(chat), context)]
    failed = context_outcome(context)
    if failed is not None:
        return ChatOutcome(failed.error, failed.status, failed.message, failed.param)
    *deltas, last = responses
    texts = [""] * (chat.n or 1)
    logprobs: list[str] = []
    for response in deltas:
        texts[response.delta.index] += response.delta.text
        logprobs += [entry.chosen.token for entry in response.delta.logprobs] if response.delta.index == 0 else []
    usage = last.end.usage
    names = ("prompt_tokens", "completion_tokens", "image_tokens", "cached_tokens")
    return ChatOutcome(
        None,
        StatusCode.OK,
        texts=tuple(texts),
        reasons=tuple(vireo_pb2.FinishReason.Name(r).split("_")[-1].lower() for r in last.end.finish_reasons),
        usage={name: getattr(usage, name) for name in names},
        operating_point=last.end.vireo.operating_point,
        guard=_guard(last.end.vireo),
        logprobs=tuple(logprobs),
    )


def _guard(report: vireo_pb2.Report) -> dict[str, Any]:
    if not report.HasField("guard"):
        return {}
    return {"score": report.guard.score, "action": report.guard.action, "reasons": list(report.guard.reasons)}


CHAT_SURFACES: dict[str, Callable[[FrontDoor, Chat], Awaitable[ChatOutcome]]] = {
    "http": http_whole,
    "http_stream": http_stream,
    "grpc": grpc_chat,
    "responses": responses_whole,
    "responses_stream": responses_stream,
}
ONE_ANSWER: Final = frozenset({"responses", "responses_stream"})
"""The surfaces on which nobody can ask for several answers."""
