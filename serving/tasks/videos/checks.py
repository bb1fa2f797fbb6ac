"""What ``vireo up`` asks a video model, by surface."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.client.checks import TIMEOUT_S, Check, Target


def _asked(target: Target) -> tuple[dict[str, Any], bytes | None]:
    """The cheapest clip of the model, and the picture that it begins with, if one goes in: white, of the usual size."""
    block = target.http.get(f"/v1/models/{target.model}").raise_for_status().json()["vireo"]
    facts, settings = block["io"], {setting["name"] for setting in block["settings"]}
    asked: dict[str, Any] = {"model": target.model, "num_frames": min(facts["num_frames"])}
    if "text" in facts["inputs"]:
        asked["prompt"] = facts["example"]
    name, cheapest = min(facts["samplers"].items(), key=lambda one: (one[1]["min_steps"], one[1]["max_steps"]))
    wanted = {"sampler": name, "num_inference_steps": cheapest["min_steps"]}
    asked |= {name: value for name, value in wanted.items() if name in settings}
    if "image" not in facts["inputs"]:
        return asked, None
    width, height = map(int, facts["sizes"][0].split("x"))
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "PNG")
    return asked, file.getvalue()


def _video_http(target: Target) -> str:
    """Make a clip, wait for it, and remove it again."""
    body, picture = _asked(target)
    if picture is not None:
        body["input_reference"] = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    answer = target.http.post("/v1/videos/sync", json=body).raise_for_status()
    checked(answer.content, answer.headers["etag"].strip('"'))
    removed = target.http.delete(f"/v1/videos/{answer.headers['x-vireo-video-id']}").raise_for_status()
    if not removed.json()["deleted"]:
        raise ValueError("the clip could not be removed")
    return f"MP4 of {len(answer.content)} bytes"


def _video_grpc(target: Target) -> str:
    """Make a clip, hear of its progress, and remove it again."""
    asked, picture = _asked(target)
    request = vireo_pb2.GenerateVideoRequest(**asked)
    if picture is not None:
        request.image = picture
    responses = list(vireo_pb2_grpc.VireoStub(target.channel).GenerateVideo(request, timeout=TIMEOUT_S))
    if not responses or not responses[-1].HasField("end"):
        raise ValueError(f"{len(responses)} messages without an end")
    data = b"".join(response.content.data for response in responses)
    checked(data, responses[-1].end.sha256)
    target.http.delete(f"/v1/videos/{responses[-1].end.id}").raise_for_status()
    num_updates = sum(response.HasField("progress") for response in responses)
    return f"MP4 of {len(data)} bytes, {num_updates} progress updates"


def checked(data: bytes, sha256: str) -> None:
    """Raises: ValueError: not the MP4 that was announced."""
    if data[4:8] != b"ftyp":
        raise ValueError(f"no MP4: begins with {data[:12]!r}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("the clip is not the one that was announced")


CHECKS: Final[Mapping[str, Check]] = {
    "POST /v1/videos/sync": _video_http,
    "vireo.v1.Vireo/GenerateVideo": _video_grpc,
}
