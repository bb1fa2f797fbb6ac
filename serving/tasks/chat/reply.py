"""Chat events to OpenAI's JSON: one object, or chunks of which all but the text is spelt once per request."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import orjson

from serving.delivery.stream.wire import ChatDelta, FinishReason, TokenLogprob
from serving.errors import ServingError
from serving.front.front import clean
from serving.front.status import error_body
from serving.service import Card
from serving.tasks.chat.domain import ChatEnd, ChatEvent, ChatRequest, Usage
from serving.tasks.chat.schemas import (
    ChatAnswer,
    ChatChoiceAnswer,
    ChatChunk,
    ChatDeltaAnswer,
    LogprobsAnswer,
    TokenAnswer,
    UsageAnswer,
    UsageSoFarAnswer,
)

DONE: Final = b"data: [DONE]\n\n"
_EVENT: Final = b"data: %s\n\n"


def fingerprint(card: Card) -> str:
    """Return what stands for the weights that answer: another one means other answers to the same seed."""
    return f"vireo-{card.checkpoint_sha256[:12]}"


def usage_to_json(usage: Usage) -> UsageAnswer:
    """Return the ``usage`` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
    }


def logprobs_to_json(logprobs: Iterable[TokenLogprob]) -> LogprobsAnswer:
    """Return a ``logprobs`` object."""
    return {"content": [{**_token(entry.token, entry.logprob), "top_logprobs": _top(entry)} for entry in logprobs]}


def _top(entry: TokenLogprob) -> list[TokenAnswer]:
    return [_token(token, logprob) for token, logprob in entry.top]


def _token(token: str, logprob: float) -> TokenAnswer:
    return {"token": clean(token), "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}


@dataclass(slots=True)
class Completion:
    """Gathers the events of one answer into one object."""

    request: ChatRequest
    fingerprint: str
    texts: list[list[str]] = field(init=False)
    reasons: list[FinishReason] = field(init=False)
    logprobs: list[list[TokenLogprob]] = field(init=False)
    end: ChatEnd | None = None

    def __post_init__(self) -> None:
        num_choices = self.request.sampling.n
        self.texts = [[] for _ in range(num_choices)]
        self.reasons = [FinishReason.STOP] * num_choices
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
        answer: ChatAnswer = {
            "id": id_of(self.request),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.request.model,
            "system_fingerprint": self.fingerprint,
            "choices": [self._choice(index) for index in range(len(self.texts))],
            "usage": usage_to_json(self.end.usage),
            "vireo": self.end.report,
        }
        return orjson.dumps(answer)

    def _choice(self, index: int) -> ChatChoiceAnswer:
        wants_logprobs = self.request.sampling.logprobs is not None
        return {
            "index": index,
            "message": {"role": "assistant", "content": clean("".join(self.texts[index])), "refusal": None},
            "logprobs": logprobs_to_json(self.logprobs[index]) if wants_logprobs else None,
            "finish_reason": self.reasons[index],
        }


def id_of(request: ChatRequest) -> str:
    """Return what the answer, or every chunk of it, is called."""
    return f"chatcmpl-{request.request_id}"


@dataclass(frozen=True, slots=True)
class StreamUsage:
    """Where a stream tells its usage. ``at_the_end``: in a chunk of its own."""

    at_the_end: bool = False
    in_every_chunk: bool = False


_NO_USAGE: Final = b'"usage":null'


class ChunkWriter:
    """Spells the server-sent events of one stream: one chunk of each kind in full, and then only what differs.

    The report travels in the chunk of the usage, or, where none is wanted, in the last chunk that ends a choice; that
    one waits for it.
    """

    def __init__(self, request: ChatRequest, fingerprint: str, usage: StreamUsage) -> None:
        self._head: ChatChunk = {
            "id": id_of(request),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": fingerprint,
            "choices": [],
        }
        self._usage = usage
        self._num_tokens = 0
        self._wants_logprobs = request.sampling.logprobs is not None
        choices = range(request.sampling.n)
        self._roles: list[bytes | None] = [
            self._chunk(index, {"role": "assistant", "content": "", "refusal": None}) for index in choices
        ]
        self._texts = [_cut(self._chunk(index, {"content": ""}), b'""') for index in choices]
        self._ends = [{reason: self._chunk(index, {}, reason) for reason in FinishReason} for index in choices]
        self._num_open = len(choices)
        self._held: bytes | None = None

    def _chunk(self, index: int, delta: ChatDeltaAnswer, reason: FinishReason | None = None) -> bytes:
        chunk: ChatChunk = {
            **self._head,
            "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}],
        }
        if self._usage.at_the_end or self._usage.in_every_chunk:
            chunk["usage"] = None
        return _EVENT % orjson.dumps(chunk)

    def delta(self, delta: ChatDelta) -> bytes:
        """Return the events of a delta: the role first, once for each choice."""
        index, counts = delta.index, self._usage.in_every_chunk
        data = b""
        role = self._roles[index]
        if role is not None:
            data, self._roles[index] = self._counted(role, delta) if counts else role, None
        self._num_tokens += delta.num_tokens
        if delta.text or delta.logprobs or (counts and delta.finish_reason is None):
            before, after = self._texts[index]
            if self._wants_logprobs:
                after = after.replace(b"null", orjson.dumps(logprobs_to_json(delta.logprobs)), 1)
            data += before + escaped(delta.text) + (self._counted(after, delta) if counts else after)
        return data if delta.finish_reason is None else data + self._finish(delta, delta.finish_reason)

    def _counted(self, chunk: bytes, delta: ChatDelta) -> bytes:
        """Put the usage so far into a chunk. No text can hold what stands in its place: its quotes are escaped."""
        usage: UsageSoFarAnswer = {
            "prompt_tokens": delta.num_prompt_tokens,
            "completion_tokens": self._num_tokens,
            "total_tokens": delta.num_prompt_tokens + self._num_tokens,
        }
        return chunk.replace(_NO_USAGE, b'"usage":' + orjson.dumps(usage), 1)

    def _finish(self, delta: ChatDelta, reason: FinishReason) -> bytes:
        data = self._ends[delta.index][reason]
        if self._usage.in_every_chunk:
            data = self._counted(data, delta)
        self._num_open -= 1
        if self._num_open == 0 and not self._usage.at_the_end:
            self._held = data
            return b""
        return data

    def end(self, end: ChatEnd) -> bytes:
        """Return what follows the last delta."""
        data = b""
        if self._held is not None:
            before, after = _cut(self._held, b"}")
            data = before + b',"vireo":' + orjson.dumps(end.report) + b"}" + after
        if self._usage.at_the_end:
            last: ChatChunk = {**self._head, "usage": usage_to_json(end.usage), "vireo": end.report}
            data += _EVENT % orjson.dumps(last)
        return data + DONE

    @staticmethod
    def error(error: ServingError) -> bytes:
        """Return the event that breaks a stream off: nothing follows it."""
        return _EVENT % error_body(error)


def _cut(chunk: bytes, at: bytes) -> tuple[bytes, bytes]:
    """Split a chunk where something goes in, the last of its kind."""
    before, _, after = chunk.rpartition(at)
    return before, after


def escaped(text: str) -> bytes:
    """Return text as a JSON string."""
    try:
        return orjson.dumps(text)
    except TypeError:
        return orjson.dumps(clean(text))
