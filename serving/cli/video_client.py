"""Video jobs over HTTP for the command line: made once however often they are sent, watched, fetched, cancelled."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

from serving.cli.chat_client import CLIENT_FAULT, SERVER_FAULT, ChatClient, ChatFailed

T = TypeVar("T")
_ATTEMPTS = 5
_MAX_EVENT_BYTES = 16 << 20
_FINAL = ("completed", "failed")


class VideoClient(ChatClient):
    """A connection to one system. Every method raises ``ChatFailed``."""

    def __init__(self, url: str, api_key: str | None, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(url, api_key)
        self._sleep = sleep

    def video_model(self) -> str:
        """Return the id of the first model served that makes clips."""
        listing = self._whole("GET", "/v1/models", None)
        try:
            ids = [str(model["id"]) for model in listing["data"] if "video" in model["vireo"].get("outputs", ())]
        except (KeyError, TypeError, AttributeError):
            raise self._not_vireo(200) from None
        if not ids:
            raise ChatFailed(f"no video model is served at {self.url}; see `vireo status`", CLIENT_FAULT)
        return ids[0]

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a job and return it. Sent again if the connection breaks: the key makes it the same job."""
        key = uuid.uuid4().hex
        return self._patiently(lambda: self._job("POST", "/v1/videos", body, {"idempotency-key": key}))

    def show(self, video_id: str) -> dict[str, Any]:
        """Return the job as it is now."""
        return self._patiently(lambda: self._job("GET", f"/v1/videos/{video_id}", None, {}))

    def cancel(self, video_id: str) -> None:
        """End the job; what goes wrong is nobody's concern any more."""
        with suppress(ChatFailed):
            self._job("DELETE", f"/v1/videos/{video_id}", None, {})

    def watch(self, video_id: str) -> Iterator[dict[str, Any]]:
        """Yield the job whenever it changes; the last one is over. A stream that breaks off is opened again."""
        num_failures = 0
        while True:
            try:
                for job in self._events(video_id):
                    num_failures = 0
                    yield job
                    if job["status"] in _FINAL:
                        return
                raise ChatFailed("the events broke off before their end; ask again", SERVER_FAULT)
            except ChatFailed as error:
                num_failures += 1
                if not error.is_servers_fault or num_failures >= _ATTEMPTS:
                    raise
                self._sleep(0.5 * num_failures)

    def download(self, video_id: str, path: Path) -> int:
        """Fetch the clip into a file, going on where a broken connection left off. Returns the number of bytes."""
        draft = path.with_name(f".{path.name}.part")
        try:
            with draft.open("w+b") as file:
                self._patiently(lambda: self._fetch(video_id, file))
                num_bytes = file.tell()
            draft.replace(path)
        except OSError as error:
            raise ChatFailed(f"cannot write {path} ({error.strerror})", CLIENT_FAULT) from None
        finally:
            draft.unlink(missing_ok=True)
        return num_bytes

    # -- parts -------------------------------------------------------------------------------------------------------

    def _job(self, method: str, path: str, body: Mapping[str, Any] | None, headers: dict[str, str]) -> dict[str, Any]:
        response = self._answer(method, path, body, headers)
        document = _object(response.content)
        if document is None or not isinstance(document.get("id"), str):
            raise self._not_vireo(200)
        return document

    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: dict[str, str]
    ) -> httpx.Response:
        try:
            response = self._http.request(method, self.url + path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        except httpx.InvalidURL as error:
            raise ChatFailed(f"{self.url} is no URL ({error})", CLIENT_FAULT) from None
        if response.status_code != 200:
            raise self._refusal(response)
        return response

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again where the connection broke off; what the server says is final."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return ask()
            except ChatFailed as error:
                if error.document is not None or not error.is_servers_fault or attempt == _ATTEMPTS:
                    raise
                self._sleep(0.5 * attempt)
        raise AssertionError

    def _events(self, video_id: str) -> Iterator[dict[str, Any]]:
        try:
            with self._http.stream("GET", f"{self.url}/v1/videos/{video_id}/events") as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refusal(response)
                rest = b""
                for data in response.iter_bytes():
                    *lines, rest = (rest + data).split(b"\n")
                    if len(rest) > _MAX_EVENT_BYTES:
                        raise ChatFailed("the answer has a line without end", SERVER_FAULT)
                    for line in lines:
                        if line.startswith(b"data: "):
                            yield self._event(line.removeprefix(b"data: "))
        except httpx.HTTPError as error:
            raise self._broken(error) from None

    def _event(self, data: bytes) -> dict[str, Any]:
        document = _object(data)
        if document is not None and isinstance(error := document.get("error"), dict) and "type" in error:
            line = f"{error.get('code')}: {error.get('message')}"
            raise ChatFailed(line, SERVER_FAULT if error["type"] == "server_error" else CLIENT_FAULT, document)
        if document is None or "status" not in document:
            raise ChatFailed("the answer holds an event that cannot be read", SERVER_FAULT)
        return document

    def _fetch(self, video_id: str, file: Any) -> None:
        have = file.seek(0, 2)
        headers = {"range": f"bytes={have}-"} if have else {}
        try:
            with self._http.stream("GET", f"{self.url}/v1/videos/{video_id}/content", headers=headers) as response:
                if response.status_code == 416:  # all of it had come, and was not the clip
                    file.truncate(0)
                    raise ChatFailed("the clip arrived damaged; ask again", SERVER_FAULT)
                if response.status_code not in (200, 206):
                    response.read()
                    raise self._refusal(response)
                if response.status_code == 200:
                    file.seek(0)
                    file.truncate()
                for data in response.iter_bytes():
                    file.write(data)
        except httpx.HTTPError as error:
            raise self._broken(error) from None
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if response.headers.get("etag", "").strip('"') != digest:
            file.truncate(0)
            raise ChatFailed("the clip arrived damaged; ask again", SERVER_FAULT)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
