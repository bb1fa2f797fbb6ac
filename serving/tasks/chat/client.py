"""Chat over HTTP for the command line: whole answers and streamed ones."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.client.exits import Exit
from serving.client.http import Client, events, failure_in, parsed
from serving.client.told import Failed

_PATH = "/v1/chat/completions"


@dataclass
class Answer:
    """An answer while and after it comes. Seconds count from when the question was sent."""

    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    first_s: float | None = None
    total_s: float = 0.0


def ended_by_guard(answer: Answer) -> str:
    """Why the guard ended an answer, as a sentence; empty where it did not."""
    guard = answer.report.get("guard", {})
    if answer.finish_reason != "length" or guard.get("action") != "capped":
        return ""
    tokens, why = answer.usage.get("completion_tokens", "?"), ", ".join(guard.get("reasons", ()))
    return f"the guard cut the answer off at {tokens} tokens, for the image looks crafted ({why})"


class ChatClient(Client):
    """A connection to one system. Every method raises ``Failed``."""

    def complete(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], Answer]:
        """Return the whole answer of one choice, as it came and as it is read."""
        started_s = time.perf_counter()
        document = self.ask("POST", _PATH, body)
        try:
            choice = document["choices"][0]
            return document, Answer(
                text=choice["message"]["content"],
                finish_reason=choice["finish_reason"],
                usage=document["usage"],
                report=document["vireo"],
                total_s=time.perf_counter() - started_s,
            )
        except (KeyError, TypeError, IndexError):
            raise self.not_vireo(200) from None

    def pieces(self, body: Mapping[str, Any], answer: Answer) -> Generator[str, None, None]:
        """Yield the text as it comes, and fill ``answer``. Closing the iterator, or an interrupt in it, stops the work.

        The server ends a stream with ``[DONE]`` or with an error; one that merely stops has been cut off.
        """
        started_s = time.perf_counter()
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self.stream("POST", _PATH, body) as response:
            for data in events(response):
                if data == b"[DONE]":
                    return
                piece = _take(parsed(data), answer)
                answer.total_s = time.perf_counter() - started_s
                if piece:
                    answer.first_s = answer.total_s if answer.first_s is None else answer.first_s
                    answer.text += piece
                    yield piece
        raise Failed("the answer broke off before its end; ask again", Exit.FAILED)


def _take(event: dict[str, Any] | None, answer: Answer) -> str:
    """Put what an event says into the answer, but for its text, which is returned. Raises: Failed."""
    if failure := failure_in(event):
        raise failure
    try:
        event = event or {}
        answer.usage = event.get("usage") or answer.usage
        answer.report = event.get("vireo") or answer.report
        if not event["choices"]:
            return ""
        choice = event["choices"][0]
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
        return choice["delta"].get("content") or ""
    except (KeyError, TypeError, AttributeError, IndexError):
        raise Failed("the answer holds an event that cannot be read", Exit.FAILED) from None
