"""A connection to a running system for the command line: which model to ask, and failures in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from serving.client.address import read_key, read_url
from serving.client.exits import Exit
from serving.client.settings import read_settings
from serving.client.told import Failed

_TIMEOUT = httpx.Timeout(120.0, connect=5.0)
_CODES = {"server_error": Exit.FAILED, "cancelled_error": Exit.FAILED, "rate_limit_error": Exit.BUSY}
_KEY_HINT = "; give the API key with --key KEY, --key @FILE or VIREO_API_KEY"
_MAX_EVENT_BYTES = 64 << 20


class Client:
    """A connection to one system. Every method raises ``Failed``."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = read_url(url)
        key = read_key(api_key)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def choose(self, task: str, model: str | None, settings: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
        """Return a model's id (where none is named, the first that is for the task) and its settings, typed."""
        if model is not None and not settings:
            return model, {}
        if model is None:
            model, block = self._first_model(task)
        else:
            block = self.model(model)
        return model, read_settings(settings or (), block["settings"], model)

    def model(self, model: str) -> dict[str, Any]:
        """Return what the system says of a model it serves."""
        block = self.ask("GET", f"/v1/models/{quote(model, safe='')}").get("vireo")
        if not isinstance(block, dict) or "settings" not in block:
            raise self.not_vireo(200)
        return block

    def models(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what is served, and what the system says of it."""
        try:
            listed = [(str(model["id"]), model["vireo"]) for model in self.ask("GET", "/v1/models")["data"]]
            return [(model, block) for model, block in listed if isinstance(block["tasks"], list)]
        except (KeyError, TypeError):
            raise self.not_vireo(200) from None

    def is_ready(self) -> bool:
        """Return whether it says that it can answer."""
        with self._plainly():
            return self._http.get(f"{self.url}/v2/health/ready").status_code == 200

    def _first_model(self, task: str) -> tuple[str, dict[str, Any]]:
        found = [(model, block) for model, block in self.models() if task in block["tasks"]]
        if not found:
            raise Failed(
                f"no model for {task} is served at {self.url}; `vireo models list --url {self.url}` shows what is",
                Exit.REFUSED,
            )
        return found[0]

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        accepts: tuple[int, ...] = (200,),
    ) -> dict[str, Any]:
        """Return the answer as it came."""
        with self._plainly():
            response = self._http.request(method, self.url + path, json=body, headers=headers)
        if response.status_code not in accepts:
            raise self._refusal(response)
        document = parsed(response.content)
        if document is None:
            raise self.not_vireo(200)
        return document

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        accepts: tuple[int, ...] = (200,),
    ) -> Generator[httpx.Response, None, None]:
        """Give the answer while it comes."""
        with (
            self._plainly(),
            self._http.stream(method, self.url + path, json=body, headers=headers) as response,
        ):
            if response.status_code not in accepts:
                response.read()
                raise self._refusal(response)
            yield response

    def not_vireo(self, status: int) -> Failed:
        """What answered is something else."""
        what = f"{self.url} did not answer as Vireo does (HTTP {status}); is another program on that port?"
        return Failed(what, Exit.UNREACHABLE)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            why = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or "no connection in time"
            raise Failed(
                f"nobody answers at {self.url} ({why}); `vireo up` starts a system here, `vireo status` shows it, "
                "--url names another",
                Exit.UNREACHABLE,
            ) from None
        except (httpx.InvalidURL, UnicodeError):  # its IDNA library has errors of its own
            raise Failed(f"{self.url} is no address; check --url") from None
        except httpx.HTTPError as error:
            what = "no answer in time" if isinstance(error, httpx.TimeoutException) else "the connection broke off"
            raise Failed(f"{what} ({str(error) or type(error).__name__}); ask again", Exit.FAILED) from None

    def _refusal(self, response: httpx.Response) -> Failed:
        failure = failure_in(parsed(response.content), response.headers.get("retry-after"))
        return failure or self.not_vireo(response.status_code)


def events(response: httpx.Response) -> Iterator[bytes]:
    """Data of server-sent events. Only line feeds end a line: text may hold what Unicode also calls one.

    Raises: Failed: a line without end.
    """
    rest = b""
    for data in response.iter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _MAX_EVENT_BYTES:
            raise Failed("the answer has a line without end", Exit.FAILED)
        yield from (line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: "))


def parsed(data: bytes) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is none."""
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def failure_in(document: Mapping[str, Any] | None, retry_after: str | None = None) -> Failed | None:
    """What a server's error says, or None for any other document."""
    error = (document or {}).get("error")
    if isinstance(error, str):  # below /v2
        error = {**(document or {}), "message": error}
    if not isinstance(error, dict) or not {"code", "message", "type"} <= error.keys():
        return None
    line = f"{error['code']}: {error['message']}"
    if retry_after is not None:
        line += f" (retry in {retry_after} s)"
    if error["type"] == "authentication_error":
        line += _KEY_HINT
    return Failed(line, _CODES.get(error["type"], Exit.REFUSED), document)
