"""The chat clients: OpenAI's events from a scripted server, and a real gRPC server with scripted answers."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from loadtest.clients.base import Budget, Client, Question, Reply
from loadtest.clients.grpc_chat import GrpcChatClient
from loadtest.clients.http11 import ResponseParser
from loadtest.clients.http_chat import HttpChatClient
from loadtest.records import Outcome
from loadtest.runner import RunLimits, run_closed_loop
from tests.support.waiting import lapse
from tests.unit.loadtest.builders import make_payload, served_grpc
from tests.unit.loadtest.test_http_clients import scripted

QUESTION = Question(text="What is it?", max_tokens=9, temperature=0.5)
USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8, "image_tokens": 32}}
WHOLE = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a cat"}, "finish_reason": "stop"}],
    "usage": USAGE,
    "vireo": {"operating_point": "full", "cache": "miss"},
}
PAUSE_S = 0.05


def chunk(text: str | None = None, reason: str | None = None, index: int = 0, **fields: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return event({"choices": [{"index": index, "delta": delta, "finish_reason": reason}], **fields})


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


END = event({"choices": [], "usage": USAGE, "vireo": {"cache": "miss"}}) + b"data: [DONE]\n\n"


@asynccontextmanager
async def streaming(pieces: Sequence[bytes], *, ends_well: bool = True) -> AsyncIterator[str]:
    """A server that sends each piece as one chunk, with a pause after each; it asks nothing of the request."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for piece in pieces:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                    await lapse(PAUSE_S)
                if not ends_well:
                    return
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def call(client: Client, **fields: Any) -> Reply:
    try:
        await client.start()
        return await client.send(client.prepare(make_payload(**{"question": QUESTION, "images": (), **fields})))
    finally:
        await client.close()


async def stream(pieces: Sequence[bytes], *, ends_well: bool = True) -> Reply:
    async with streaming(pieces, ends_well=ends_well) as url:
        return await call(HttpChatClient(url, is_streamed=True))


async def test_a_request_is_what_openai_defines() -> None:
    async with scripted() as script:
        script.answers(200, WHOLE)
        for is_streamed in (True, False):
            client = HttpChatClient(script.url, is_streamed=is_streamed, api_keys={"a": "KEY"})
            images, budget = (b"\xff\xd8\xffjpeg", b"\x89PNGpng", b"broken"), Budget(latency_ms=50.0)
            await call(client, model="m", tenant="a", images=images, budget=budget)
    streamed, whole = script.bodies
    assert script.heads[0].startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert "authorization: Bearer KEY\r\n" in script.heads[0]
    (message,) = whole.pop("messages")
    *pictures, text = message["content"]
    assert (message["role"], text) == ("user", {"type": "text", "text": "What is it?"})
    urls = [picture["image_url"]["url"] for picture in pictures]
    assert [url.partition(";")[0] for url in urls] == ["data:image/jpeg", "data:image/png", "data:image/png"]
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == list(images)
    assert whole == {"model": "m", "max_tokens": 9, "temperature": 0.5, "vireo": {"latency_ms": 50.0}}
    assert (streamed["stream"], streamed["stream_options"]) == (True, {"include_usage": True})


async def test_a_whole_answer_has_counts_and_no_time_of_a_first_token() -> None:
    async with scripted() as script:
        script.answers(200, WHOLE)
        reply = await call(HttpChatClient(script.url, is_streamed=False))
    assert reply.outcome is Outcome.OK
    assert reply.generated is not None
    assert (reply.generated.first_token_at_s, reply.generated.gaps_s) == (None, ())
    assert (reply.generated.text, reply.generated.finish_reasons) == ("a cat", ("stop",))
    counts = (reply.generated.num_tokens, reply.generated.num_prompt_tokens)
    assert (*counts, reply.generated.num_image_tokens, reply.generated.num_cached_tokens) == (3, 40, 32, 8)
    assert reply.server is not None
    assert (reply.server.operating_point, reply.server.cache) == ("full", "miss")


async def test_tokens_are_timed_by_their_arrival_and_the_role_and_the_usage_are_no_tokens() -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    pieces = [role, chunk("a"), b": keep-alive\n\n" + chunk(" c") + chunk("a"), chunk("t"), chunk(None, "stop") + END]
    reply = await stream(pieces)
    generated = reply.generated
    assert reply.outcome is Outcome.OK
    assert generated is not None
    assert generated.first_token_at_s is not None
    assert reply.first_chunk_at_s is not None
    assert generated.first_token_at_s - reply.first_chunk_at_s >= 0.8 * PAUSE_S  # the role came first
    assert len(generated.gaps_s) == 2  # " c" and "a" came at once
    assert all(gap >= 0.8 * PAUSE_S for gap in generated.gaps_s)
    assert (generated.text, generated.finish_reasons, generated.num_tokens) == ("a cat", ("stop",), 3)
    assert generated.first_token_at_s + sum(generated.gaps_s) <= reply.done_at_s


async def test_several_choices_are_told_apart() -> None:
    pieces = [chunk("a"), chunk("x", index=1), chunk("b", "length"), chunk(None, "stop", index=1) + END]
    reply = await stream(pieces)
    assert reply.generated is not None
    assert (reply.generated.text, reply.generated.finish_reasons) == ("ab", ("length", "stop"))


async def test_an_error_in_a_stream_is_the_outcome_and_what_came_before_is_kept() -> None:
    error = event({"error": {"code": "replica_lost", "message": "retry", "type": "server_error", "param": None}})
    reply = await stream([chunk("a"), error])
    assert (reply.outcome, reply.error_code, reply.error_message) == (Outcome.SERVER_ERROR, "replica_lost", "retry")
    assert reply.generated is not None
    assert reply.generated.text == "a"


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk("a")],
        [chunk("a", "stop")],
        [b"data: [DONE]\n\n"],
        [event({"choices": [{"index": 0}]}), END],
        [event([1])],
        [b"data: {\n\n"],
    ],
    ids=["no end", "no done", "nothing", "no delta", "no object", "no json"],
)
async def test_a_stream_that_does_not_follow_the_api_is_a_protocol_error(pieces: list[bytes]) -> None:
    assert (await stream(pieces)).outcome is Outcome.PROTOCOL_ERROR


async def test_a_stream_that_breaks_is_a_connection_error() -> None:
    assert (await stream([chunk("a")], ends_well=False)).outcome is Outcome.CONNECTION_ERROR


async def test_an_error_before_the_stream_is_read_as_on_every_path() -> None:
    async with scripted() as script:
        script.answers(429, {"error": {"code": "queue_full", "message": "m"}}, "retry-after: 3")
        reply = await call(HttpChatClient(script.url, is_streamed=True))
    assert (reply.outcome, reply.error_code, reply.retry_after_s) == (Outcome.REJECTED, "queue_full", 3.0)


async def test_a_record_counts_the_first_token_from_the_start_of_the_run() -> None:
    async with streaming([chunk("a"), chunk("b", "stop") + END]) as url:
        client = HttpChatClient(url, is_streamed=True)
        await client.start()
        payload = make_payload(question=QUESTION, surface="http_chat")
        records = await run_closed_loop(client, [payload], 1, num_requests=2, limits=RunLimits(timeout_s=10.0))
        await client.close()
    for record in records:
        assert record.sent_at_s is not None
        assert record.generated is not None
        assert record.generated.first_token_at_s is not None
        assert record.done_at_s is not None
        assert record.sent_at_s <= record.generated.first_token_at_s <= record.done_at_s
        assert record.first_token_s == record.generated.first_token_at_s - record.sent_at_s


async def test_a_payload_without_a_question_is_refused() -> None:
    for client in (HttpChatClient("http://127.0.0.1:1", is_streamed=True), GrpcChatClient("127.0.0.1:1")):
        with pytest.raises(ValueError, match="question"):
            client.prepare(make_payload())


def test_the_parser_tells_when_each_part_of_the_body_was_there() -> None:
    parser, pieces = ResponseParser(), [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"2\r\nab\r\n1\r\nc"]
    pieces += [b"\r\n", b"3\r\ndef\r\n0\r\n\r\n"]
    responses = [parser.feed(piece, float(at_s)) for at_s, piece in enumerate(pieces)]
    response = responses[-1]
    assert response is not None
    assert response.body == b"abcdef"
    assert [response.arrived_at_s(end) for end in (1, 2, 3, 4, 6, 7)] == [1.0, 1.0, 2.0, 3.0, 3.0, 3.0]


# -- gRPC --------------------------------------------------------------------------------------------------------------


class Servicer(vireo_pb2_grpc.VireoServicer):
    def __init__(self, *events: Any) -> None:
        self.events = events
        self.requests: list[Any] = []

    async def Classify(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)

    def ClassifyStream(self, requests: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        for item in self.events:
            if isinstance(item, grpc.StatusCode):
                await context.abort(item, "as planned")
            yield vireo_pb2.ChatResponse(**item)
            await lapse(PAUSE_S)


async def call_grpc(servicer: Servicer, **fields: Any) -> Reply:
    async with served_grpc(servicer) as address:
        return await call(GrpcChatClient(address), **fields)


def delta(text: str) -> dict[str, Any]:
    return {"delta": vireo_pb2.ChatDelta(index=0, text=text, num_tokens=1)}


GRPC_END = {
    "end": vireo_pb2.ChatEnd(
        model="m",
        finish_reasons=[vireo_pb2.FINISH_REASON_LENGTH],
        usage=vireo_pb2.Usage(prompt_tokens=40, completion_tokens=2, image_tokens=32, cached_tokens=8),
        vireo=vireo_pb2.Report(operating_point="full", cache="miss"),
    )
}


async def test_grpc_sends_what_http_sends_and_times_each_delta() -> None:
    servicer = Servicer(delta("a"), delta("b"), GRPC_END)
    reply = await call_grpc(servicer, model="m", images=(b"x",), budget=Budget(latency_ms=50.0))
    (request,) = servicer.requests
    image, text = request.messages[0].parts
    assert (request.model, image.image, text.text, request.vireo.latency_ms) == ("m", b"x", "What is it?", 50.0)
    assert (request.sampling.max_tokens, request.sampling.temperature) == (9, 0.5)
    generated = reply.generated
    assert (reply.outcome, reply.status) == (Outcome.OK, "OK")
    assert generated is not None
    assert (generated.text, generated.finish_reasons, generated.num_tokens) == ("ab", ("length",), 2)
    assert (generated.num_image_tokens, generated.num_cached_tokens) == (32, 8)
    assert len(generated.gaps_s) == 1
    assert generated.gaps_s[0] >= 0.8 * PAUSE_S
    assert reply.first_chunk_at_s == generated.first_token_at_s
    assert reply.server is not None
    assert reply.server.cache == "miss"


async def test_a_grpc_call_that_fails_or_ends_early_is_an_outcome() -> None:
    assert (await call_grpc(Servicer(delta("a")))).outcome is Outcome.PROTOCOL_ERROR
    failed = await call_grpc(Servicer(delta("a"), grpc.StatusCode.UNAVAILABLE))
    assert (failed.outcome, failed.status) == (Outcome.UNAVAILABLE, "UNAVAILABLE")
