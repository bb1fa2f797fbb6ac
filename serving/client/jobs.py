"""Durable jobs over HTTP for the command line: made once however often they are sent, watched, fetched, cancelled."""

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
from serving.client.told import Failed, console

T = TypeVar("T")
_ATTEMPTS = 5
_FINAL = ("completed", "failed")


class JobClient(Client):
    """A connection to one system, for jobs below one path. Every method raises ``Failed``."""

    def __init__(self, url: str, api_key: str | None, path: str, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(url, api_key)
        self._path = path
        self._sleep = sleep

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a job and return it. Sent again if the connection breaks: the key makes it the same job."""
        key = uuid.uuid4().hex
        return self._patiently(lambda: self._job("POST", path, body, {"idempotency-key": key}))

    def show(self, job_id: str) -> dict[str, Any]:
        """Return the job as it is now."""
        return self._patiently(lambda: self._job("GET", f"{self._path}/{job_id}"))

    def cancel(self, job_id: str) -> None:
        """End the job; what goes wrong is nobody's concern any more."""
        with suppress(Failed):
            self._job("DELETE", f"{self._path}/{job_id}")

    def followed(self, job: dict[str, Any], *, is_quiet: bool) -> dict[str, Any]:
        """Return the job once it is completed; its progress is shown on standard error.

        Raises: Failed; KeyboardInterrupt: the job is cancelled.
        """
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        bar = Progress(
            TextColumn("{task.description:>8}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[step]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=console(stderr=True),
            disable=is_quiet,
            transient=True,
        )
        try:
            with bar:
                task = bar.add_task("queued", total=100, step="", left="")
                for job in self.watch(str(job["id"])):  # noqa: B020  the newest is returned
                    stage, step, left = _told(job)
                    bar.update(task, completed=job["progress"], description=stage, step=step, left=left)
        except BaseException:  # nobody waits for it any more
            self.cancel(str(job["id"]))
            raise
        if job["status"] != "completed":
            raise failure_in(job) or Failed("the job failed", Exit.FAILED, job)
        return job

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield the job whenever it changes; the last one is over. A stream that breaks off is opened again."""
        num_failures = 0
        while True:
            try:
                for job in self._changes(job_id):
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

    def download(self, job_id: str, path: Path, variant: str = "") -> int:
        """Fetch what was made into a file, going on where a broken connection left off. Returns the number of bytes."""
        draft = path.with_name(f".{path.name}.part")
        try:
            with draft.open("w+b") as file:
                self._patiently(lambda: self._fetch(job_id, variant, file))
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
        document = self.ask(method, path, body, headers, accepts=(200, 202))
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

    def _changes(self, job_id: str) -> Iterator[dict[str, Any]]:
        with self.stream("GET", f"{self._path}/{job_id}/events") as response:
            for data in events(response):
                document = parsed(data)
                if document is None or "status" not in document:
                    unreadable = Failed("the answer holds an event that cannot be read", Exit.FAILED)
                    raise failure_in(document) or unreadable
                yield document

    def _fetch(self, job_id: str, variant: str, file: Any) -> None:
        have = file.seek(0, 2)
        headers = {"range": f"bytes={have}-"} if have else {}
        path = f"{self._path}/{job_id}/content" + (f"?variant={variant}" if variant else "")
        with self.stream("GET", path, headers=headers, accepts=(200, 206, 416)) as response:
            if response.status_code == 416:  # all of it had come, and was not the file
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
    return Failed("what was made arrived damaged; ask again", Exit.FAILED)


def _told(job: Mapping[str, Any]) -> tuple[str, str, str]:
    """Stage, step and time left, as far as the job says."""
    block = job["vireo"]
    step = f"step {block['step']}/{block['num_steps']}" if "step" in block else ""
    left_s = block.get("remaining_s")
    left = "" if left_s is None else "{}:{:02d} left".format(*divmod(max(0, round(left_s)), 60))
    return str(block.get("stage", job["status"]))[:12], step, left
