"""What ``vireo up`` asks a chat model, by surface."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.client.checks import TIMEOUT_S, Check, Target, example_png

_MAX_TOKENS = 64
_MAX_SHOWN_CHARS = 60


def _chat_body(model: str, image: bytes, **more: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Read the text."}]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": _MAX_TOKENS, **more}


def _chat_http(target: Target) -> str:
    """Read an English word; the answer comes whole."""
    body = _chat_body(target.model, example_png("word-en.png", "harbour"))
    document = target.http.post("/v1/chat/completions", json=body).raise_for_status().json()
    return shown(document["choices"][0]["message"]["content"], document["usage"]["completion_tokens"])


def _chat_sse(target: Target) -> str:
    """Read a Chinese word; the answer comes as events."""
    image, options = example_png("word-zh.png", "window"), {"include_usage": True}
    body = _chat_body(target.model, image, stream=True, stream_options=options)
    answer = target.http.post("/v1/chat/completions", json=body).raise_for_status()
    lines = [line.removeprefix(b"data: ") for line in answer.content.split(b"\n") if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        raise ValueError(f"the stream broke off: {lines[-1:]}")
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    return shown(text, chunks[-1]["usage"]["completion_tokens"])


def _chat_grpc(target: Target) -> str:
    """Find a shape."""
    picture = vireo_pb2.ChatPart(image=example_png("red-square.png"))
    parts = [picture, vireo_pb2.ChatPart(text="Where is the red square?")]
    request = vireo_pb2.ChatRequest(
        model=target.model,
        messages=[vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=parts)],
        sampling=vireo_pb2.Sampling(temperature=0, max_tokens=_MAX_TOKENS),
    )
    responses = list(vireo_pb2_grpc.VireoStub(target.channel).Chat(request, timeout=TIMEOUT_S))
    if not responses or not responses[-1].HasField("end"):
        raise ValueError(f"{len(responses)} messages without an end")
    text = "".join(response.delta.text for response in responses[:-1])
    return shown(text, responses[-1].end.usage.completion_tokens)


def shown(text: str, num_tokens: int) -> str:
    """Return an answer as it fits on a line. Raises: ValueError: there is none."""
    if num_tokens < 1:
        raise ValueError("an answer of no tokens")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MAX_SHOWN_CHARS else line[: _MAX_SHOWN_CHARS - 3] + "..."


CHECKS: Final[Mapping[str, Check]] = {
    "POST /v1/chat/completions": _chat_http,
    "POST /v1/chat/completions (events)": _chat_sse,
    "vireo.v1.Vireo/Chat": _chat_grpc,
}
