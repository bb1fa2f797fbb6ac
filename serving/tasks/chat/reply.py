"""Chat events to OpenAI's JSON: one object, or chunks of which all but the text is spelt once per request."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from serving.errors import ServingError
from serving.front.status import error_object
from serving.service import ChatModelCard
from serving.tasks.chat.domain import ChatDelta, ChatEnd, ChatEvent, ChatRequest, FinishReason, TokenLogprob, Usage
from serving.tasks.classify.body import report_fields

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
_END = b"\n\n"


def fingerprint(card: ChatModelCard) -> str:
    """Return what stands for the weights that answer: another one means other answers to the same seed."""
    return f"vireo-{card.checkpoint_sha256[:12]}"


def head_of(request: ChatRequest, kind: str, fingerprint: str) -> dict[str, Any]:
    """Return the fields with which every object about one answer begins."""
    return {
        "id": f"chatcmpl-{request.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": fingerprint,
    }


def usage_to_json(usage: Usage) -> dict[str, Any]:
    """Return the ``usage`` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
    }


def logprobs_to_json(logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return a ``logprobs`` object."""
    return {"content": [{**_logprob(entry.token, entry.logprob), "top_logprobs": _top(entry)} for entry in logprobs]}


def _top(entry: TokenLogprob) -> list[dict[str, Any]]:
    return [_logprob(token, logprob) for token, logprob in entry.top]


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": clean(token), "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}


def clean(text: str) -> str:
    """Return text that can be sent: half a surrogate pair becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@dataclass(slots=True)
class Completion:
    """Gathers the events of one answer into one object."""

    request: ChatRequest
    fingerprint: str
    texts: list[list[str]] = field(init=False)
    reasons: list[FinishReason | None] = field(init=False)
    logprobs: list[list[TokenLogprob]] = field(init=False)
    end: ChatEnd | None = None

    def __post_init__(self) -> None:
        num_choices = self.request.sampling.n
        self.texts = [[] for _ in range(num_choices)]
        self.reasons = [None] * num_choices
        self.logprobs = [[] for _ in range(num_choices)]

    def add(self, event: ChatEvent) -> None:
        """Take the next event."""
        if isinstance(event, ChatEnd):
            self.end = event
            return
        self.texts[event.index].append(event.text)
        self.logprobs[event.index] += event.logprobs
        self.reasons[event.index] = event.finish_reason or self.reasons[event.index]

    def to_json(self) -> bytes:
        """Return the ``chat.completion`` object."""
        assert self.end is not None
        document = head_of(self.request, "chat.completion", self.fingerprint)
        document["choices"] = [self._choice(index) for index in range(len(self.texts))]
        document["usage"] = usage_to_json(self.end.usage)
        document["vireo"] = report_fields(self.end.report)
        return orjson.dumps(document)

    def _choice(self, index: int) -> dict[str, Any]:
        wants_logprobs = self.request.sampling.logprobs is not None
        return {
            "index": index,
            "message": {"role": "assistant", "content": clean("".join(self.texts[index])), "refusal": None},
            "logprobs": logprobs_to_json(self.logprobs[index]) if wants_logprobs else None,
            "finish_reason": self.reasons[index],
        }


class ChunkWriter:
    """Spells the server-sent events of one stream.

    The report travels in the chunk of the usage, or, where none is wanted, in the last chunk that ends a choice; that
    one waits for it.
    """

    def __init__(self, request: ChatRequest, fingerprint: str, wants_usage: bool) -> None:
        self._head = head_of(request, "chat.completion.chunk", fingerprint)
        self._wants_usage = wants_usage
        self._wants_logprobs = request.sampling.logprobs is not None
        prefix = b"data: " + orjson.dumps(self._head)[:-1] + (b',"usage":null' if wants_usage else b"")
        self._prefixes = [
            prefix + b',"choices":[{"index":%d,"delta":{"content":' % index for index in range(request.sampling.n)
        ]
        self._ends = [prefix + b',"choices":[{"index":%d,"delta":{}' % index for index in range(request.sampling.n)]
        self._roles: list[bytes | None] = [
            prefix
            + b',"choices":[{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},' % index
            + b'"logprobs":null,"finish_reason":null}]}\n\n'
            for index in range(request.sampling.n)
        ]
        self._num_open = request.sampling.n
        self._held: bytes | None = None

    def delta(self, delta: ChatDelta) -> bytes:
        """Return the events of a delta: the role first, once for each choice."""
        index = delta.index
        data = b""
        role = self._roles[index]
        if role is not None:
            data, self._roles[index] = role, None
        if delta.text or delta.logprobs:
            logprobs = b'},"logprobs":null,"finish_reason":null}]}\n\n'
            if self._wants_logprobs:
                spelt = orjson.dumps(logprobs_to_json(delta.logprobs))
                logprobs = b'},"logprobs":' + spelt + b',"finish_reason":null}]}\n\n'
            data += self._prefixes[index] + escaped(delta.text) + logprobs
        return data if delta.finish_reason is None else data + self._finish(index, delta.finish_reason)

    def _finish(self, index: int, reason: FinishReason) -> bytes:
        data = self._ends[index] + b',"logprobs":null,"finish_reason":"%s"}]' % reason.value.encode()
        self._num_open -= 1
        if self._num_open == 0 and not self._wants_usage:
            self._held = data
            return b""
        return data + b"}\n\n"

    def end(self, end: ChatEnd) -> bytes:
        """Return what follows the last delta."""
        report = orjson.dumps(report_fields(end.report))
        data = b"" if self._held is None else self._held + b',"vireo":' + report + b"}\n\n"
        if self._wants_usage:
            tail = {"choices": [], "usage": usage_to_json(end.usage), "vireo": report_fields(end.report)}
            data += b"data: " + orjson.dumps(self._head | tail) + _END
        return data + DONE

    @staticmethod
    def error(error: ServingError) -> bytes:
        """Return the event that breaks a stream off: nothing follows it."""
        return b"data: " + orjson.dumps({"error": error_object(error)}) + _END


def escaped(text: str) -> bytes:
    """Return text as a JSON string."""
    try:
        return orjson.dumps(text)
    except TypeError:
        return orjson.dumps(clean(text))
