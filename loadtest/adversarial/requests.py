"""Attacks through parameters: bodies that a server has to refuse, or to bound and to price, before it computes.

What a clip or a picture costs hardly depends on what it shows, so an attacker turns the numbers: steps, frames, sizes,
pictures in one request, and numbers that are none. ``hostile`` makes the bodies, from the standard library alone;
``send`` posts them to a server of one's own and says how each was answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

VIDEOS, IMAGES = "/v1/videos", "/v1/images/generations"
_RAW = "\0raw\0"
_NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999")
"""As JSON writes them, or as a reader that is not strict takes them. The last two are JSON, and overflow."""
_NOT_COUNTS = (0, -1, 2**31, 10**18, 1.5, True, "20", [20], {"n": 20})


@dataclass(frozen=True, slots=True)
class Hostile:
    """A request that must be refused. ``what``: the parameter, and what is wrong with it."""

    path: str
    what: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one was answered. ``status`` 0: not at all. ``is_refused``: a typed 4xx."""

    what: str
    status: int
    code: str | None
    seconds: float

    @property
    def is_refused(self) -> bool:
        """400 to 499, with an error that has a code."""
        return 400 <= self.status < 500 and self.code is not None


def hostile(clips: str = "vdit-nano", pictures: str = "dit-moe-nano") -> Iterator[Hostile]:
    """Every kind, on both tasks. ``clips`` and ``pictures``: the models to ask."""
    film = {"model": clips, "prompt": "a red circle moves right"}
    draw = {"model": pictures, "prompt": "a green 7"}
    for path, base in ((VIDEOS, film), (IMAGES, draw)):
        for field, values in _VALUES[path].items():
            for value in values:
                yield _made(path, base, field, value)
        for field in _FLOATS[path]:
            for text in _NOT_FINITE:
                yield _made(path, base, field, _RAW + text)
        yield Hostile(path, "body: nested 10,000 deep", b'{"vireo":' * 10_000 + b"1" + b"}" * 10_000)
        yield Hostile(path, "body: 1,000 settings", _encoded(base, "vireo.settings", {f"k{i}": i for i in range(1000)}))


_FLOATS = {
    VIDEOS: ("guidance_scale", "num_inference_steps", "seconds", "vireo.latency_ms", "vireo.energy_j"),
    IMAGES: (
        "vireo.settings.guidance_scale",
        "vireo.settings.num_inference_steps",
        "vireo.latency_ms",
        "vireo.energy_j",
    ),
}
_STEPS: tuple[Any, ...] = (0, -1, 10**18, 1.5, True, "20", [20])
_SIZES: tuple[Any, ...] = ("0x64", "-64x64", "99999x99999", "64x64x64", "64", "1e3x64", "６４x64", 64, [64, 64])
_VALUES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    VIDEOS: {
        "num_frames": _NOT_COUNTS,
        "seconds": (0, -1, "1e9", 10**9, []),
        "fps": (0, -1, 10**9, True, "8 "),
        "size": _SIZES,
        "seed": (-1, 2**64, 1.5, True),
        "n": (2, 10**6),
        "num_inference_steps": _STEPS,
        "guidance_scale": (-1, 0.5, 1e308, "7", True),
        "sampler": ("", "fastest", 7),
        "attention": ("tile:0:0", "adaspa:2", "ras:-1", "tile:999999999:1"),
        "vireo.priority": ("highest", 9),
        "vireo.latency_ms": (0, -1, True, "100"),
        "vireo.energy_j": (0, -1, True, "100"),
        "prompt": ("", "x" * 2_000_000, 7, ["a"]),
    },
    IMAGES: {
        "n": (0, -1, 10**6, 1.5, True, "2"),
        "size": _SIZES,
        "seed": (-1, 2**64, 1.5, True),
        "vireo.settings.num_inference_steps": _STEPS,
        "vireo.settings.guidance_scale": (-1, 0.5, 1e308, "7", True),
        "vireo.settings.k0": (0, 3, 10**9, True),
        "vireo.latency_ms": (0, -1, True, "100"),
        "vireo.energy_j": (0, -1, True, "100"),
        "prompt": ("", "x" * 2_000_000, 7, ["a"]),
    },
}


def _made(path: str, base: Mapping[str, Any], field: str, value: Any) -> Hostile:
    shown = value.removeprefix(_RAW) if isinstance(value, str) else repr(value)
    return Hostile(path, f"{field}: {shown[:40]}", _encoded(base, field, value))


def _encoded(base: Mapping[str, Any], field: str, value: Any) -> bytes:
    """JSON of ``base`` with one field set, whose name may lead into objects; raw texts are put in as they are."""
    body: dict[str, Any] = dict(base)
    *outer, last = field.split(".")
    inside = body
    for name in outer:
        inside = inside.setdefault(name, {})
    inside[last] = value
    text = json.dumps(body)
    if isinstance(value, str) and value.startswith(_RAW):
        text = text.replace(json.dumps(value), value.removeprefix(_RAW))
    return text.encode()


def client_of(url: str, key: str | None = None, timeout_s: float = 30.0) -> httpx.Client:
    """To be closed by the caller."""
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    return httpx.Client(base_url=url, headers=headers, timeout=timeout_s)


def send(client: httpx.Client, asked: Iterable[Hostile]) -> Iterator[Outcome]:
    """Post each to a server, one after another."""
    for one in asked:
        what, started_s = f"{one.path} {one.what}", time.monotonic()
        try:
            response = client.post(one.path, content=one.body)
        except httpx.TransportError:
            yield Outcome(what, 0, None, time.monotonic() - started_s)
            continue
        yield Outcome(what, response.status_code, _code(response), time.monotonic() - started_s)


def _code(response: httpx.Response) -> str | None:
    try:
        error = response.json()["error"]
        return str(error["code"])
    except (ValueError, KeyError, TypeError):
        return None
