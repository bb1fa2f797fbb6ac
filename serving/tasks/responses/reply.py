"""Chat events to the JSON of Responses: one object, or the events of its making."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from serving.delivery.stream.wire import ChatDelta, FinishReason, TokenLogprob
from serving.errors import ServingError
from serving.front.front import clean
from serving.front.status import ErrorObject, error_object
from serving.tasks.chat.domain import ChatEnd
from serving.tasks.chat.reply import Completion, logprobs_to_json
from serving.tasks.chat.schemas import TokenLogprobAnswer
from serving.tasks.responses.schemas import ItemAnswer, ItemStatus, PartAnswer, ResponseAnswer, ResponseUsageAnswer


@dataclass(slots=True)
class Response(Completion):
    """Gathers the events of one answer. ``echoed``: fields of the body that it repeats."""

    echoed: Mapping[str, Any] = field(default_factory=dict)
    created_at: int = field(default_factory=lambda: int(time.time()))

    def to_json(self) -> bytes:
        """Return the whole answer."""
        return orjson.dumps(self.answer())

    @property
    def item_id(self) -> str:
        """What the message is called."""
        return f"msg_{self.request.request_id}"

    def part(self) -> PartAnswer:
        """The text so far."""
        return {
            "type": "output_text",
            "text": clean("".join(self.texts[0])),
            "annotations": [],
            "logprobs": tokens(self.logprobs[0]),
        }

    def item(self) -> ItemAnswer:
        """The message that holds the text."""
        is_whole = self.end is not None and self.reasons[0] is not FinishReason.LENGTH
        return self.message("completed" if is_whole else "incomplete", self.part())

    def message(self, status: ItemStatus, *parts: PartAnswer) -> ItemAnswer:
        """The message at some stage."""
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(parts),
        }

    def answer(self, error: ErrorObject | None = None) -> ResponseAnswer:
        """The object as it is now. ``error``: it broke off."""
        request, item, end = self.request, self.item(), self.end
        is_over = end is not None or (error is not None and bool(item["content"][0]["text"]))
        answer: ResponseAnswer = {
            "id": f"resp_{request.request_id}",
            "object": "response",
            "created_at": self.created_at,
            "status": "failed" if error else "in_progress" if end is None else item["status"],
            "background": False,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if end and item["status"] == "incomplete" else None,
            "max_output_tokens": request.sampling.max_tokens,
            "model": request.model,
            "output": [item] if is_over else [],
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": request.sampling.temperature,
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": request.sampling.logprobs or 0,
            "top_p": request.sampling.top_p,
            "truncation": "disabled",
            "usage": None if end is None else _usage(end),
            "vireo": None if end is None else end.report,
            **self.echoed,  # type: ignore[typeddict-item]
        }
        return answer


def _usage(end: ChatEnd) -> ResponseUsageAnswer:
    usage = end.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def tokens(logprobs: Iterable[TokenLogprob]) -> list[TokenLogprobAnswer]:
    """Return probabilities; none where none are wanted."""
    return logprobs_to_json(logprobs)["content"]


class EventWriter:
    """Spells the server-sent events of one answer, in OpenAI's order and numbered from 0."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._number = 0
        self._place = {"item_id": response.item_id, "output_index": 0}
        self._part = {**self._place, "content_index": 0}

    def _event(self, kind: str, **members: Any) -> bytes:
        data = orjson.dumps({"type": kind, "sequence_number": self._number, **members})
        self._number += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)

    def _opened(self) -> bytes:
        """What precedes everything else, once."""
        if self._number:
            return b""
        response, answer = self._response, self._response.answer()
        return b"".join((
            self._event("response.created", response=answer),
            self._event("response.in_progress", response=answer),
            self._event("response.output_item.added", output_index=0, item=response.message("in_progress")),
            self._event("response.content_part.added", **self._part, part=response.part()),
        ))  # fmt: skip

    def delta(self, delta: ChatDelta) -> bytes:
        """Return the events of a delta."""
        data = self._opened()
        self._response.add(delta)
        if delta.text or delta.logprobs:
            data += self._event(
                "response.output_text.delta", **self._part, delta=clean(delta.text), logprobs=tokens(delta.logprobs)
            )
        return data

    def end(self, end: ChatEnd) -> bytes:
        """Return what follows the last delta."""
        data, response = self._opened(), self._response
        response.add(end)
        item, answer = response.item(), response.answer()
        (part,) = item["content"]
        return b"".join((
            data,
            self._event("response.output_text.done", **self._part, text=part["text"], logprobs=part["logprobs"]),
            self._event("response.content_part.done", **self._part, part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{answer['status']}", response=answer),
        ))  # fmt: skip

    def error(self, error: ServingError) -> bytes:
        """Return the events that break a stream off: some clients look for the one, some for the other."""
        data, told = self._opened(), error_object(error)
        plain = {"code": told["code"], "message": told["message"], "param": told["param"]}
        data += self._event("error", **plain, error=told)
        return data + self._event("response.failed", response=self._response.answer(told))
