"""Whom to ask and as whom: ``--url`` and ``--key`` as people write them, read in one place for every command."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from serving.client.told import Failed

DEFAULT_PORT = 8000
_ONLY_A_PORT = re.compile(r":?(\d{1,5})")
_MAX_KEY_FILE_BYTES = 4096


def read_url(text: str) -> str:
    """Return the base URL: ``localhost:8000`` is http, a host alone has Vireo's port, and neither a slash at the end
    nor OpenAI's ``/v1`` changes anything. Another path is where a proxy has put Vireo.

    Raises: Failed: no address.
    """
    words = text.strip()
    if port_alone := _ONLY_A_PORT.fullmatch(words):
        words = f"127.0.0.1:{port_alone[1]}"
    if "@" in words:
        raise _too_much()
    is_bare = "://" not in words
    try:
        parts = urlsplit(f"http://{words}" if is_bare else words)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as whoever looks it up will: no part is empty or too long
    except ValueError:
        raise _no_url(text) from None
    is_clean = words.isprintable() and not re.search(r"[\s\\]", parts.netloc)
    if parts.scheme not in ("http", "https") or not host or not is_clean:
        raise _no_url(text)
    if parts.query or parts.fragment:
        raise _too_much()
    port = DEFAULT_PORT if is_bare and port is None else port
    host = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


def _no_url(text: str) -> Failed:
    return Failed(f"--url is {text!r}, which is no address; write HOST:PORT, http://HOST:PORT or https://HOST")


def _too_much() -> Failed:
    return Failed("--url holds more than scheme, host, port and path; a key is given with --key")


def read_key(text: str | None) -> str | None:
    """Return the API key: the text, or what is in the file that ``@FILE`` names. No message repeats it.

    Raises: Failed: the file cannot be read, or there is no key in it that a header could carry.
    """
    if not text:
        return None
    key = _in_file(Path(text[1:])) if text.startswith("@") else text
    if not (key.isascii() and key.isprintable()):
        raise Failed("the API key holds characters that no header can carry; check it")
    return key


def _in_file(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            key = file.read(_MAX_KEY_FILE_BYTES).decode("utf-8", "replace").strip()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Failed(f"--key names the file {path}, which cannot be read ({why})") from None
    if not key:
        raise Failed(f"--key names the file {path}, which is empty")
    return key
