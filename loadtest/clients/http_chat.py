"""``POST /v1/chat/completions`` in OpenAI's shape: server-sent events, or one object.

Other servers of that API can be called, too: what Vireo adds (the ``vireo`` block, counts of image tokens) is read if
it is there. The events are read after the answer has ended, from the arrival times that the connection has noted, so
that nothing is parsed while an answer is under way.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loadtest.clients.base import Payload, Prepared
from loadtest.clients.generated import MAX_TEXT_CHARS, Pieces
from loadtest.clients.http11 import HttpResponse
from loadtest.clients.http_base import HttpClient
from loadtest.clients.outcomes import Answer, WrongAnswer, outcome_of_error_type, read_error_object, read_report
from loadtest.records import Generated, Outcome

PATH = "/v1/chat/completions"
_MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


class HttpChatClient(HttpClient):
    """``is_streamed``: ask for events and note when each text arrives."""

    def __init__(
        self,
        base_url: str,
        *,
        is_streamed: bool,
        api_keys: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(base_url, api_keys=api_keys, now_s=now_s)
        self._is_streamed = is_streamed

    def prepare(self, payload: Payload) -> Prepared:
        """The JSON body, images as data URLs. Raises: ValueError: the payload asks nothing."""
        question = payload.question
        if question is None:
            raise ValueError("a chat payload needs a question")
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": _data_url(image)}} for image in payload.images
        ]
        parts.append({"type": "text", "text": question.text})
        body: dict[str, Any] = {
            "model": payload.model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
        }
        if self._is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if payload.budget is not None:
            body["vireo"] = payload.budget.to_json()
        return self.encode_json(PATH, body, payload)

    def read_response(self, response: HttpResponse, payload: Payload) -> Answer:
        """Events or an object, as the server chose. Raises: ValueError, WrongAnswer."""
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            return self.read_answer(json.loads(response.body), payload)
        try:
            return _read_events(response)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise WrongAnswer(f"not a chat stream: {type(error).__name__} {error}") from error

    def read_answer(self, body: Any, payload: Payload) -> Answer:
        """Read a ``chat.completion``. Raises: WrongAnswer."""
        try:
            choices = sorted(body["choices"], key=lambda choice: int(choice["index"]))
            reasons = tuple(str(choice["finish_reason"]) for choice in choices)
            text = str(choices[0]["message"]["content"] or "")[:MAX_TEXT_CHARS]
            generated = Generated(finish_reasons=reasons, text=text, **_counts(body["usage"]))
            return _answer(generated, body.get("vireo"))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise WrongAnswer(f"not a chat answer: {type(error).__name__} {error}") from error


def _read_events(response: HttpResponse) -> Answer:
    pieces, usage, report, is_done = Pieces(), None, None, False
    for data, end in _events(response.body):
        if data == b"[DONE]":
            is_done = True
            continue
        event = json.loads(data)
        if (error := event.get("error")) is not None:
            return _broken_off(error, pieces)
        at_s = response.arrived_at_s(end)
        for choice in event["choices"]:
            pieces.text(choice["index"], choice["delta"].get("content") or "", at_s)
            if choice.get("finish_reason") is not None:
                pieces.finish(choice["index"], str(choice["finish_reason"]))
        usage, report = event.get("usage") or usage, event.get("vireo") or report
    generated = pieces.generated(**_counts(usage or {}))
    if not is_done or not generated.finish_reasons:
        return Answer(
            outcome=Outcome.PROTOCOL_ERROR, error_message="the stream ended without its end", generated=generated
        )
    return _answer(generated, report)


def _events(body: bytes) -> Iterator[tuple[bytes, int]]:
    """The data of each event and where in the body it ends. Comments are skipped."""
    start = 0
    while (end := body.find(b"\n\n", start)) >= 0:
        event = body[start:end].strip()
        start = end + 2
        if event.startswith(b"data:"):
            yield event[5:].strip(), start


def _broken_off(error: Mapping[str, Any], pieces: Pieces) -> Answer:
    """A stream whose last event is an error."""
    details = read_error_object(error)
    return Answer(
        outcome=outcome_of_error_type(details.type),
        error_code=details.code,
        error_message=details.message,
        generated=pieces.generated(),
    )


def _answer(generated: Generated, report: Mapping[str, Any] | None) -> Answer:
    return Answer(outcome=Outcome.OK, generated=generated, server=None if report is None else read_report(report))


def _counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    details = usage.get("prompt_tokens_details") or {}
    return {
        "num_tokens": _count(usage.get("completion_tokens")),
        "num_prompt_tokens": _count(usage.get("prompt_tokens")),
        "num_image_tokens": _count(details.get("image_tokens")),
        "num_cached_tokens": _count(details.get("cached_tokens")),
    }


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def _data_url(image: bytes) -> str:
    """Whatever is no picture that we know is called a PNG: a broken image should reach the decoder."""
    media_type = next((name for magic, name in _MEDIA_TYPES.items() if image.startswith(magic)), "image/png")
    return f"data:{media_type};base64,{base64.b64encode(image).decode('ascii')}"
