"""How long one request holds the event loop of a front door, in a process of its own: the answer is one JSON line.

    python loop_probe.py BODY_FILE PATH CONTENT_TYPE

The front door is the one on the module path, with a fake behind it, so that the same probe runs against any commit. The
body arrives in pieces of 64 KiB with a turn of the loop between them, as from a socket.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from serving.front.auth import Authenticator
from serving.gateway.http import build_http_app
from serving.limits import IngressLimits
from tests.support.fake_service import FakeService, joined

_PIECE_BYTES = 1 << 16
_TICK_S = 0.001


async def main(body: bytes, path: str, content_type: str) -> None:
    """Send the body twice, the first time to have everything started, and tell of the second."""
    app = build_http_app(joined(FakeService()), Authenticator({}, True), IngressLimits(), lambda: b"")
    pieces = [body[start : start + _PIECE_BYTES] for start in range(0, len(body), _PIECE_BYTES)] or [b""]
    for _ in range(2):
        ticker = asyncio.create_task(_longest_hold_s())
        await asyncio.sleep(0.05)
        status = await _post(app, pieces, path, content_type)
        ticker.cancel()
        held_s = await ticker
    print(json.dumps({"held_ms": round(held_s * 1e3, 1), "status": status}))


async def _longest_hold_s() -> float:
    longest_s = 0.0
    try:
        while True:
            begun_s = time.perf_counter()
            await asyncio.sleep(_TICK_S)
            longest_s = max(longest_s, time.perf_counter() - begun_s - _TICK_S)
    except asyncio.CancelledError:
        return max(longest_s, time.perf_counter() - begun_s - _TICK_S)


async def _post(app: Any, pieces: list[bytes], path: str, content_type: str) -> int:
    sent: list[dict[str, Any]] = []
    remaining = iter(enumerate(pieces, 1))

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        number, piece = next(remaining, (0, b""))
        if not number:
            await asyncio.Event().wait()  # the client stays, and has nothing more to say
        return {"type": "http.request", "body": piece, "more_body": number < len(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-length", str(sum(map(len, pieces))).encode())]
    headers += [(b"content-type", content_type.encode())] if content_type else []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 4711), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    await app(scope, receive, send)
    return int(sent[0]["status"])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]).read_bytes(), sys.argv[2], sys.argv[3]))
