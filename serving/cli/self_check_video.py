"""One clip over each surface. What it shows is not judged; that it is a file of the promised kind is."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc
import httpx
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.errors import ConfigError

TIMEOUT_S = 180.0
PROMPT = "a red circle moves right"


def served_video_model(http: httpx.Client) -> str | None:
    """Return the id of the first video model that the server lists, if it lists any.

    Raises: ConfigError: it lists nothing.
    """
    try:
        models = http.get("/v1/models").raise_for_status().json()["data"]
        return next((model["id"] for model in models if "video" in model["vireo"].get("outputs", ())), None)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ConfigError(f"self-check failed: GET /v1/models: {type(error).__name__}: {error}") from error


def video_http(http: httpx.Client, model: str) -> str:
    """Make a clip, wait for it, and remove it again."""
    answer = http.post("/v1/videos/sync", json=_body(http, model), timeout=TIMEOUT_S).raise_for_status()
    checked(answer.content, answer.headers["etag"].strip('"'))
    removed = http.delete(f"/v1/videos/{answer.headers['x-vireo-video-id']}").raise_for_status()
    if not removed.json()["deleted"]:
        raise ValueError("the clip could not be removed")
    return f"MP4 of {len(answer.content)} bytes"


def video_grpc(channel: grpc.Channel, http: httpx.Client, model: str) -> str:
    """Make a clip, hear of its progress, and remove it again."""
    body = _body(http, model)
    request = vireo_pb2.GenerateVideoRequest(
        model=model, prompt=PROMPT, sampler=body.get("sampler"), num_inference_steps=body.get("num_inference_steps")
    )
    responses = list(vireo_pb2_grpc.VireoStub(channel).GenerateVideo(request, timeout=TIMEOUT_S))
    if not responses or not responses[-1].HasField("end"):
        raise ValueError(f"{len(responses)} messages without an end")
    data = b"".join(response.content.data for response in responses)
    checked(data, responses[-1].end.sha256)
    http.delete(f"/v1/videos/{responses[-1].end.id}").raise_for_status()
    num_updates = sum(response.HasField("progress") for response in responses)
    return f"MP4 of {len(data)} bytes, {num_updates} progress updates"


def checked(data: bytes, sha256: str) -> None:
    """Raises: ValueError: not the MP4 that was announced."""
    if data[4:8] != b"ftyp":
        raise ValueError(f"no MP4: begins with {data[:12]!r}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("the clip is not the one that was announced")


def _body(http: httpx.Client, model: str) -> dict[str, Any]:
    """The cheapest clip: the sampler of few steps where there is one."""
    block = http.get(f"/v1/models/{model}").raise_for_status().json()["vireo"]
    few = {"sampler": "consistency", "num_inference_steps": 4} if "consistency" in block["samplers"] else {}
    return {"model": model, "prompt": PROMPT, **few}
