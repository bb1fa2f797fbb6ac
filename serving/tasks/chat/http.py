"""``POST /v1/chat/completions`` on bare ASGI: the answer as one object, or as server-sent events while it is made."""

from __future__ import annotations

from serving.domain import Budget
from serving.errors import Cancelled
from serving.front.front import Front
from serving.front.http.call import Answer, Call, HeaderList
from serving.front.http.json_body import JsonReader
from serving.service import ChatModelCard
from serving.tasks.chat.body import ChatCall, call_from_document, json_bounds
from serving.tasks.chat.domain import ChatEnd, ChatEvent
from serving.tasks.chat.reply import KEEP_ALIVE, ChunkWriter, Completion, fingerprint
from serving.tasks.chat.stream import EventQueue, joined
from serving.telemetry.events import OK

STREAM_HEADERS: HeaderList = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def read_chat(call: Call, front: Front, reader: JsonReader, fallback: Budget) -> ChatCall:
    """Read and parse the body. Raises: ClientError."""
    limits = front.limits
    return await call_from_document(
        await reader.read(call.receive, call.headers, limits, json_bounds(limits)),
        request_id=call.request_id,
        tenant=call.tenant,
        fallback=fallback,
        limits=limits,
        may_use_logprobs=front.authenticator.may_use_logprobs(call.tenant),
    )


async def answer_whole(call: Call, chat: ChatCall, front: Front) -> Answer:
    """Answer with one object. Raises: ServingError."""
    card = _begin(call, chat, front)
    completion = Completion(chat.request, fingerprint(card))
    async with EventQueue(front.service.chat(chat.request), receive=call.receive) as queue:
        while completion.end is None:
            for event in await queue.take():
                completion.add(event)
    _end(call)
    return Answer(completion.to_json())


async def answer_stream(call: Call, chat: ChatCall, front: Front) -> None:
    """Answer with events. An error before the first one is raised; a later one is the last event.

    Raises: ServingError: nothing has been sent yet.
    """
    writer = ChunkWriter(chat.request, fingerprint(_begin(call, chat, front)), chat.wants_usage)
    events = front.service.chat(chat.request)
    async with EventQueue(events, receive=call.receive, silence_s=front.limits.keep_alive_s) as queue:
        first = await queue.take()
        await call.start(STREAM_HEADERS)
        try:
            await _send_events(call, writer, queue, first)
            _end(call)
        except Cancelled as error:
            call.known(error)
        except Exception as error:
            await call.send_piece(writer.error(call.known(error)), is_last=True)


async def _send_events(call: Call, writer: ChunkWriter, queue: EventQueue[ChatEvent], taken: list[ChatEvent]) -> None:
    """Send what there is and then what comes, one piece for everything that is there at a time."""
    while True:
        pieces, is_over = [], False
        for event in joined(taken):
            is_over = isinstance(event, ChatEnd)
            pieces.append(writer.end(event) if isinstance(event, ChatEnd) else writer.delta(event))
        data = b"".join(pieces) if taken else KEEP_ALIVE
        if data:
            await call.send_piece(data, is_last=is_over)
        if is_over:
            return
        taken = await queue.take()


def _begin(call: Call, chat: ChatCall, front: Front) -> ChatModelCard:
    card = front.chat_card(chat.request.model)
    assert call.visit is not None
    call.visit.model = card.id
    return card


def _end(call: Call) -> None:
    assert call.visit is not None
    call.visit.outcome = OK
