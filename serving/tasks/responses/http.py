"""``POST /v1/responses`` on bare ASGI: chat in OpenAI's newer spelling, whole or as the events of its making."""

from __future__ import annotations

from copy import copy
from typing import Final

from serving.domain import Surface
from serving.errors import ServingError, UnsupportedField
from serving.front.http.call import Answer, Call, Route
from serving.front.http.openapi import BUDGET_HEADERS, event_content, json_content, operation
from serving.tasks.chat.body import json_bounds
from serving.tasks.chat.http import answer_stream, answer_whole
from serving.tasks.responses.body import call_from_document
from serving.tasks.responses.reply import EventWriter, Response
from serving.tasks.responses.schemas import ResponseAnswer, ResponseBody, ResponseEvent


async def respond(call: Call) -> Answer | None:
    """``POST /v1/responses``."""
    try:
        return await _respond(call)
    except ServingError as error:
        # What is called so by the rules and behind them; no field of this body is.
        if error.param != "messages" or isinstance(error, UnsupportedField):
            raise
        told = copy(error)
        told.param = "input"
        raise told from error


async def _respond(call: Call) -> Answer | None:
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
    request = front.admit(asked.request, front.service.chats.chat_models(), call.visit)
    response = Response(request, "", echoed=asked.echoed)
    if not request.is_streamed:
        return await answer_whole(call, response)
    await answer_stream(call, request, EventWriter(response))
    return None


ROUTES: Final = (
    Route(
        method="POST",
        path="/v1/responses",
        handler=respond,
        surface=Surface.HTTP_RESPONSES,
        operation=operation(
            "Chat about text and images, as items",
            {**json_content(ResponseAnswer), **event_content(ResponseEvent)},
            *BUDGET_HEADERS,
            id="create_response",
            body=json_content(ResponseBody),
            text="Nothing is stored. With stream, the last event is response.completed, response.incomplete or "
            "response.failed.",
        ),
    ),
)
