"""Ways to ask the front door for clips. No test logic."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from serving.front.auth import Authenticator
from serving.tasks.videos.limits import ClipLimits
from tests.support import flipbook
from tests.support.clients import BOUNDARY, FrontDoor, HttpReply, asgi
from tests.support.fake_service import FakeService
from tests.support.fake_videos import make_video_card

PROMPT = "a red circle moves"
BODY: dict[str, Any] = {"model": "fake-video", "prompt": PROMPT}
KEYS = {name: hashlib.sha256(f"key-of-{name}".encode()).hexdigest() for name in ("ada", "bob")}
ADA, BOB = {"x-api-key": "key-of-ada"}, {"x-api-key": "key-of-bob"}


def video_door(**options: Any) -> FrontDoor:
    """A door behind which clips are made."""
    return FrontDoor(service=FakeService(video_cards=(make_video_card(),)), **options)


def keyed_door() -> FrontDoor:
    """One with two tenants."""
    return video_door(authenticator=Authenticator(KEYS, False))


def flipbook_door(**options: Any) -> FrontDoor:
    """One behind which clips begin with a picture."""
    limits = [ClipLimits(family=flipbook.FAMILY, variant=variant) for variant in flipbook.FAMILY.variants]
    cards = tuple(make_video_card(each.variant.id, each) for each in limits)
    return FrontDoor(service=FakeService(video_cards=cards), **options)


async def post(
    door: FrontDoor, document: Any, path: str = "/v1/videos", headers: Mapping[str, str] | None = None
) -> HttpReply:
    """Send JSON."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return await asgi(door.app, "POST", path, body, {"content-type": "application/json", **(headers or {})})


async def post_form(door: FrontDoor, fields: Mapping[str, str | bytes]) -> HttpReply:
    """Send a form."""
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'.encode()
        + (value.encode() if isinstance(value, str) else value)
        + b"\r\n"
        for name, value in fields.items()
    ]
    body = b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    return await asgi(
        door.app, "POST", "/v1/videos", body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    )


async def get(door: FrontDoor, path: str, **headers: str) -> HttpReply:
    """Fetch."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await asgi(door.app, "GET", path, b"", {"host": "vireo.localhost:8000", **named})


class Presence:
    """A client that stays until it leaves: what an ASGI application receives."""

    def __init__(self, body: bytes = b"") -> None:
        self._messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        """The body once, then nothing until the client is gone."""
        if self._messages:
            return self._messages.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}


def events_of(body: bytes) -> list[tuple[str, Any]]:
    """Names and data of server-sent events; comments are named ``:``."""
    events = []
    for block in body.decode().strip().split("\n\n"):
        if block.startswith(":"):
            events.append((":", block))
            continue
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events
