"""What the HTTP clients share: one exchange, and its end as a ``Reply``."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from loadtest.clients.base import MAX_ERROR_CHARS, NobodyThere, Payload, Prepared, Reply, bearer
from loadtest.clients.http11 import BadResponse, ConnectionFailed, HttpPool, HttpResponse, encode_request
from loadtest.clients.outcomes import Answer, ErrorBody, WrongAnswer, outcome_of_http, read_error_json, short
from loadtest.records import Outcome


class HttpClient(ABC):
    """A client of one JSON path. Subclasses say what to send and how to read a success."""

    def __init__(
        self,
        base_url: str,
        *,
        api_keys: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_url = base_url
        self._pool = HttpPool(base_url, now_s=now_s)
        self._api_keys = dict(api_keys or {})
        self._now_s = now_s

    async def start(self) -> None:
        """Open the first connection. Raises: TargetError: if nobody answers there."""
        try:
            await self._pool.connect()
        except ConnectionFailed as error:
            raise NobodyThere(f"no HTTP server answers at {self._base_url}: {error}") from error

    @abstractmethod
    def prepare(self, payload: Payload) -> Prepared:
        """The request as it goes over the wire."""

    @abstractmethod
    def read_answer(self, body: Any, payload: Payload) -> Answer:
        """Read the JSON of a success. Raises: WrongAnswer."""

    def read_response(self, response: HttpResponse, payload: Payload) -> Answer:
        """Read a success: JSON, unless a subclass knows better. Raises: ValueError, WrongAnswer."""
        return self.read_answer(json.loads(response.body), payload)

    async def send(self, prepared: Prepared) -> Reply:
        """Send and wait; every failure of the target is a ``Reply``."""
        try:
            response = await self._pool.exchange(prepared.wire)
        except ConnectionFailed as error:
            return self._failed(Outcome.CONNECTION_ERROR, error)
        except BadResponse as error:
            return self._failed(Outcome.PROTOCOL_ERROR, error)
        return self._to_reply(response, prepared.payload)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    def encode_json(self, path: str, body: Any, payload: Payload) -> Prepared:
        """A POST of JSON, whole."""
        encoded = json.dumps(body, separators=(",", ":")).encode()
        headers = {"content-type": "application/json"}
        if (authorization := bearer(self._api_keys, payload.tenant)) is not None:
            headers["authorization"] = authorization
        wire = encode_request(self._pool, "POST", path, body=encoded, headers=headers)
        return Prepared(payload=payload, wire=wire, request_bytes=len(wire))

    def _to_reply(self, response: HttpResponse, payload: Payload) -> Reply:
        if outcome_of_http(response.status) is not Outcome.OK:
            return self._refused(response)
        try:
            return self._answered(response, self.read_response(response, payload))
        except (ValueError, WrongAnswer) as error:
            return self._answered(response, Answer(outcome=Outcome.PROTOCOL_ERROR, error_message=short(error)))

    def _refused(self, response: HttpResponse) -> Reply:
        try:
            error = read_error_json(json.loads(response.body))
        except ValueError:  # a proxy's page, say
            error = ErrorBody(message=short(response.body[:MAX_ERROR_CHARS].decode("utf-8", "replace")))
        return Reply(
            outcome=outcome_of_http(response.status, error.type),
            done_at_s=response.done_at_s,
            first_chunk_at_s=response.first_byte_at_s,
            status=str(response.status),
            error_code=error.code,
            error_message=error.message,
            retry_after_s=_seconds(response.headers.get("retry-after")),
            response_bytes=len(response.body),
        )

    def _answered(self, response: HttpResponse, answer: Answer) -> Reply:
        return Reply(
            outcome=answer.outcome,
            done_at_s=response.done_at_s,
            first_chunk_at_s=response.first_byte_at_s,
            status=str(response.status),
            error_code=answer.error_code,
            error_message=answer.error_message,
            response_bytes=len(response.body),
            labels=answer.labels,
            exits=answer.exits,
            server=answer.server,
            generated=answer.generated,
        )

    def _failed(self, outcome: Outcome, error: Exception) -> Reply:
        return Reply(outcome=outcome, done_at_s=self._now_s(), error_message=short(error))


def _seconds(value: str | None) -> float | None:
    """Retry-After in seconds; its date form is not used by this API and reads as unknown."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
