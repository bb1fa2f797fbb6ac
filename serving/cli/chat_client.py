"""Chat over HTTP for the command line: which model to ask, whole answers and streamed ones, failures in one line."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

SERVER_FAULT, CLIENT_FAULT = 1, 2
"""Exit codes: the same command may succeed later; the command, or what it asks, must change."""

_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_SERVER_TYPES = ("server_error", "rate_limit_error")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAX_ANSWER_BYTES = 64 << 20


class ChatFailed(Exception):
    """No answer. The message is one line for the user; ``document`` is the server's error as it came, if it did."""

    def __init__(self, line: str, exit_code: int, document: Mapping[str, Any] | None = None) -> None:
        super().__init__(line)
        self.line = plain(line).replace("\n", " ")
        self.exit_code = exit_code
        self.document = document

    @property
    def is_servers_fault(self) -> bool:
        """Whether the same question may be answered later."""
        return self.exit_code == SERVER_FAULT


@dataclass
class Answer:
    """An answer while and after it comes. Seconds count from when the question was sent."""

    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    first_s: float | None = None
    total_s: float = 0.0


def plain(text: str) -> str:
    """Return text that cannot steer a terminal: what a model or a server says may come from an image of a stranger."""
    return _CONTROL.sub("\ufffd", text)


def whole(text: str) -> str:
    """Return text that JSON can carry: bytes of an argument that are no UTF-8 become a replacement character."""
    return _SURROGATE.sub("\ufffd", text)


class ChatClient:
    """A connection to one system. Every method raises ``ChatFailed``."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ChatFailed("the API key holds characters that no header can carry; check it", CLIENT_FAULT)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def chat_model(self) -> str:
        """Return the id of the first model served that can chat."""
        listing = self._whole("GET", "/v1/models", None)
        try:
            ids = [str(model["id"]) for model in listing["data"] if "modalities" in model["vireo"]]
        except (KeyError, TypeError):
            raise self._not_vireo(200) from None
        if not ids:
            raise ChatFailed(f"no chat model is served at {self.url}; see `vireo status`", CLIENT_FAULT)
        return ids[0]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole answer as it came."""
        return self._whole("POST", "/v1/chat/completions", body)

    def ask(self, body: Mapping[str, Any]) -> Answer:
        """Return the whole answer of one choice."""
        started_s = time.perf_counter()
        document = self.complete(body)
        try:
            choice = document["choices"][0]
            return Answer(
                text=choice["message"]["content"],
                finish_reason=choice["finish_reason"],
                usage=document["usage"],
                report=document["vireo"],
                total_s=time.perf_counter() - started_s,
            )
        except (KeyError, TypeError, IndexError):
            raise self._not_vireo(200) from None

    def stream(self, body: Mapping[str, Any], answer: Answer) -> Generator[str, None, None]:
        """Yield the text as it comes, and fill ``answer``. Closing the iterator, or an interrupt in it, stops the work.

        The server ends a stream with ``[DONE]`` or with an error; one that merely stops has been cut off.
        """
        started_s = time.perf_counter()
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refusal(response)
                for event in _events(response):
                    piece = _take(event, answer)
                    answer.total_s = time.perf_counter() - started_s
                    if piece:
                        answer.first_s = answer.total_s if answer.first_s is None else answer.first_s
                        answer.text += piece
                        yield piece
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        except httpx.InvalidURL as error:
            raise ChatFailed(f"{self.url} is no URL ({error})", CLIENT_FAULT) from None

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._http.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        except httpx.InvalidURL as error:
            raise ChatFailed(f"{self.url} is no URL ({error})", CLIENT_FAULT) from None
        if response.status_code != 200:
            raise self._refusal(response)
        document = _object(response.content)
        if document is None:
            raise self._not_vireo(200)
        return document

    def _broken(self, error: httpx.HTTPError) -> ChatFailed:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol):
            return ChatFailed(
                f"cannot reach {self.url} ({error}); is the system up? `vireo status`, `vireo up`", CLIENT_FAULT
            )
        what = "no answer in time" if isinstance(error, httpx.TimeoutException) else "the connection broke off"
        return ChatFailed(f"{what} ({str(error) or type(error).__name__}); ask again", SERVER_FAULT)

    def _refusal(self, response: httpx.Response) -> ChatFailed:
        document = _object(response.content)
        if document is None or not _is_error(document.get("error")):
            return self._not_vireo(response.status_code)
        return _failure(document, response.headers.get("retry-after"))

    def _not_vireo(self, status: int) -> ChatFailed:
        return ChatFailed(
            f"{self.url} did not answer as Vireo does (HTTP {status}); is another program on that port?", CLIENT_FAULT
        )


def _events(response: httpx.Response) -> Iterator[Any]:
    """Events of a stream up to ``[DONE]``. Only line feeds end a line: text may hold what Unicode also calls one."""
    rest = b""
    for data in response.iter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _MAX_ANSWER_BYTES:
            raise ChatFailed("the answer has a line without end", SERVER_FAULT)
        for line in lines:
            if line.startswith(b"data: "):
                if line == b"data: [DONE]":
                    return
                yield _object(line.removeprefix(b"data: "))
    raise ChatFailed("the answer broke off before its end; ask again", SERVER_FAULT)


def _take(event: Any, answer: Answer) -> str:
    """Put what an event says into the answer, but for its text, which is returned. Raises: ChatFailed."""
    if isinstance(event, dict) and _is_error(event.get("error")):
        raise _failure(event, None)
    try:
        answer.usage = event.get("usage") or answer.usage
        answer.report = event.get("vireo") or answer.report
        if not event["choices"]:
            return ""
        choice = event["choices"][0]
        answer.finish_reason = choice["finish_reason"] or answer.finish_reason
        return choice["delta"].get("content") or ""
    except (KeyError, TypeError, AttributeError, IndexError):
        raise ChatFailed("the answer holds an event that cannot be read", SERVER_FAULT) from None


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _is_error(error: Any) -> bool:
    return isinstance(error, dict) and {"code", "message", "type"} <= error.keys()


def _failure(document: Mapping[str, Any], retry_after: str | None) -> ChatFailed:
    error = document["error"]
    line = f"{error['code']}: {error['message']}"
    if retry_after is not None:
        line += f" (retry in {retry_after} s)"
    return ChatFailed(line, SERVER_FAULT if error["type"] in _SERVER_TYPES else CLIENT_FAULT, document)
