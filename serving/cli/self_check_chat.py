"""One chat over each surface, with pictures that ship with the project. Whether an answer is right is not judged."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import grpc
import httpx
from PIL import Image, ImageDraw, ImageFont
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.errors import ConfigError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_S = 60.0
MAX_TOKENS = 64
MAX_SHOWN_CHARS = 60


def served_chat_model(http: httpx.Client) -> str | None:
    """Return the id of the first chat model that the server lists, if it lists any.

    Raises: ConfigError: it lists nothing.
    """
    try:
        models = http.get("/v1/models").raise_for_status().json()["data"]
        return next((model["id"] for model in models if "modalities" in model["vireo"]), None)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ConfigError(f"self-check failed: GET /v1/models: {type(error).__name__}: {error}") from error


def example_png(name: str, word: str | None = None) -> bytes:
    """Return an example; where the package has been installed without them, a picture like it: a word or a square."""
    path = EXAMPLES / name
    if path.is_file():
        return path.read_bytes()
    image = Image.new("RGB", (224, 112), "white")
    canvas = ImageDraw.Draw(image)
    if word is None:
        canvas.rectangle((140, 30, 190, 80), fill="red")
    else:
        canvas.text((112, 56), word, "black", ImageFont.load_default(40), anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def chat_http(http: httpx.Client, model: str) -> str:
    """Read an English word; the answer comes whole."""
    body = _body(model, example_png("word-en.png", "harbour"), "Read the text.")
    document = http.post("/v1/chat/completions", json=body, timeout=TIMEOUT_S).raise_for_status().json()
    return shown(document["choices"][0]["message"]["content"], document["usage"]["completion_tokens"])


def chat_sse(http: httpx.Client, model: str) -> str:
    """Read a Chinese word; the answer comes as events."""
    body = _body(model, example_png("word-zh.png", "window"), "Read the text.")
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = http.post("/v1/chat/completions", json=body, timeout=TIMEOUT_S).raise_for_status()
    lines = [line.removeprefix(b"data: ") for line in answer.content.split(b"\n") if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        raise ValueError(f"the stream broke off: {lines[-1:]}")
    chunks = [json.loads(line) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    return shown(text, chunks[-1]["usage"]["completion_tokens"])


def chat_grpc(channel: grpc.Channel, model: str) -> str:
    """Find a shape."""
    parts = [
        vireo_pb2.ChatPart(image=example_png("red-square.png")),
        vireo_pb2.ChatPart(text="Where is the red square?"),
    ]
    request = vireo_pb2.ChatRequest(
        model=model,
        messages=[vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=parts)],
        sampling=vireo_pb2.Sampling(temperature=0, max_tokens=MAX_TOKENS),
    )
    responses = list(vireo_pb2_grpc.VireoStub(channel).Chat(request, timeout=TIMEOUT_S))
    if not responses or not responses[-1].HasField("end"):
        raise ValueError(f"{len(responses)} messages without an end")
    text = "".join(response.delta.text for response in responses[:-1])
    return shown(text, responses[-1].end.usage.completion_tokens)


def _body(model: str, image: bytes, question: str) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }


def shown(text: str, num_tokens: int) -> str:
    """Return an answer as it fits on a line. Raises: ValueError: there is none."""
    if num_tokens < 1:
        raise ValueError("an answer of no tokens")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_SHOWN_CHARS else line[: MAX_SHOWN_CHARS - 3] + "..."
