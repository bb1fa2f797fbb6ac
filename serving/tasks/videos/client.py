"""Video jobs over HTTP for the command line: made once however often they are sent, watched, fetched, cancelled."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from serving.client.exits import Exit
from serving.client.http import Client, events, failure_in, parsed
from serving.client.told import Failed

T = TypeVar("T")
_ATTEMPTS = 5
_FINAL = ("completed", "failed")


class VideoClient(Client):
    """A connection to one system. Every method raises ``Failed``."""

    def __init__(self, url: str, api_key: str | None, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(url, api_key)
        self._sleep = sleep

    def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a job and return it. Sent again if the connection breaks: the key makes it the same job."""
        key = uuid.uuid4().hex
        return self._patiently(lambda: self._job("POST", "/v1/videos", body, {"idempotency-key": key}))

    def show(self, video_id: str) -> dict[str, Any]:
        """Return the job as it is now."""
        return self._patiently(lambda: self._job("GET", f"/v1/videos/{video_id}"))

    def cancel(self, video_id: str) -> None:
        """End the job; what goes wrong is nobody's concern any more."""
        with suppress(Failed):
            self._job("DELETE", f"/v1/videos/{video_id}")

    def watch(self, video_id: str) -> Iterator[dict[str, Any]]:
        """Yield the job whenever it changes; the last one is over. A stream that breaks off is opened again."""
        num_failures = 0
        while True:
            try:
                for job in self._changes(video_id):
                    num_failures = 0
                    yield job
                    if job["status"] in _FINAL:
                        return
                raise Failed("the events broke off before their end; ask again", Exit.FAILED)
            except Failed as error:
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
            raise Failed(f"cannot write {path} ({error.strerror})") from None
        finally:
            draft.unlink(missing_ok=True)
        return num_bytes

    # -- parts -------------------------------------------------------------------------------------------------------

    def _job(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        document = self.ask(method, path, body, headers)
        if not isinstance(document.get("id"), str):
            raise self.not_vireo(200)
        return document

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again where the connection broke off; what the server says is final."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return ask()
            except Failed as error:
                if error.document is not None or not error.is_servers_fault or attempt == _ATTEMPTS:
                    raise
                self._sleep(0.5 * attempt)
        raise AssertionError

    def _changes(self, video_id: str) -> Iterator[dict[str, Any]]:
        with self.stream("GET", f"/v1/videos/{video_id}/events") as response:
            for data in events(response):
                document = parsed(data)
                if document is None or "status" not in document:
                    unreadable = Failed("the answer holds an event that cannot be read", Exit.FAILED)
                    raise failure_in(document) or unreadable
                yield document

    def _fetch(self, video_id: str, file: Any) -> None:
        have = file.seek(0, 2)
        headers = {"range": f"bytes={have}-"} if have else {}
        path = f"/v1/videos/{video_id}/content"
        with self.stream("GET", path, headers=headers, accepts=(200, 206, 416)) as response:
            if response.status_code == 416:  # all of it had come, and was not the clip
                file.truncate(0)
                raise _damaged()
            if response.status_code == 200:
                file.seek(0)
                file.truncate()
            for data in response.iter_bytes():
                file.write(data)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if response.headers.get("etag", "").strip('"') != digest:
            file.truncate(0)
            raise _damaged()


def _damaged() -> Failed:
    return Failed("the clip arrived damaged; ask again", Exit.FAILED)
