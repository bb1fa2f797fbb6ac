"""``POST /v1/chat/completions`` on bare ASGI: the answer as one object, or as server-sent events while it is made."""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

from serving.delivery.stream.wire import ChatDelta
from serving.domain import Surface
from serving.errors import Cancelled, ServingError
from serving.front.events import EventQueue
from serving.front.http.call import EVENT_HEADERS, KEEP_ALIVE, Answer, Call, Route
from serving.front.http.openapi import BUDGET_HEADERS, event_content, json_content, operation
from serving.tasks.chat.body import call_from_document, json_bounds
from serving.tasks.chat.domain import ChatEnd, ChatEvent, ChatRequest, joined
from serving.tasks.chat.reply import ChunkWriter, Completion, fingerprint
from serving.tasks.chat.schemas import ChatAnswer, ChatBody, ChatChunk
from serving.telemetry.events import OK


async def chat(call: Call) -> Answer | None:
    """``POST /v1/chat/completions``."""
    call.media_type("application/json")
    front, fallback = call.front, call.budget()
    asked = await call_from_document(
        await call.read_json(json_bounds(front.limits)),
        request_id=call.request_id,
        tenant=call.tenant,
        fallback=fallback,
        limits=front.limits,
        logprobs=front.authenticator.logprob_rights(call.tenant),
    )
    cards = front.service.chats.chat_models()
    request = front.admit(asked.request, cards, call.visit)
    weights = fingerprint(front.card(request.model, cards))
    if asked.usage is None:
        return await answer_whole(call, Completion(request, weights))
    await answer_stream(call, request, ChunkWriter(request, weights, asked.usage))
    return None


class Writer(Protocol):
    """Spells the server-sent events of one answer."""

    def delta(self, delta: ChatDelta) -> bytes:
        """Return the events of a delta."""
        ...

    def end(self, end: ChatEnd) -> bytes:
        """Return what follows the last delta."""
        ...

    def error(self, error: ServingError) -> bytes:
        """Return what breaks a stream off: nothing follows it."""
        ...


async def answer_whole(call: Call, completion: Completion) -> Answer:
    """Answer with one object."""
    events = partial(call.front.service.chats.chat, completion.request)
    async with EventQueue(events, receive=call.receive) as queue:
        while completion.end is None:
            for event in await queue.take():
                completion.add(event)
    call.visit.outcome = OK
    return Answer(completion.to_json())


async def answer_stream(call: Call, request: ChatRequest, writer: Writer) -> None:
    """Answer with events. An error before the first one is raised; a later one is the last event."""
    events = partial(call.front.service.chats.chat, request)
    async with EventQueue(events, receive=call.receive, silence_s=call.front.limits.keep_alive_s) as queue:
        first = await queue.take()
        await call.start(EVENT_HEADERS)
        try:
            await _send_events(call, writer, queue, first)
            call.visit.outcome = OK
        except Cancelled as error:
            call.known(error)
        except Exception as error:
            await call.send_piece(writer.error(call.known(error)), is_last=True)


async def _send_events(call: Call, writer: Writer, queue: EventQueue[ChatEvent], taken: list[ChatEvent]) -> None:
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


ROUTES: Final = (
    Route(
        method="POST",
        path="/v1/chat/completions",
        handler=chat,
        surface=Surface.HTTP_CHAT,
        operation=operation(
            "Chat about text and images",
            {**json_content(ChatAnswer), **event_content(ChatChunk)},
            *BUDGET_HEADERS,
            id="create_chat_completion",
            body=json_content(ChatBody),
            text="With stream, each event is a line of data with a chunk; the last one is [DONE].",
        ),
    ),
)
