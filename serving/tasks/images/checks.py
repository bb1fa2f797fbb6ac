"""The requests with which ``vireo up`` checks a model that makes images, by surface."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.client.checks import TIMEOUT_S, Check, Target


def _facts(target: Target) -> dict[str, Any]:
    """What the model says of its inputs and outputs."""
    model = target.http.get(f"/v1/models/{target.model}").raise_for_status().json()
    facts: dict[str, Any] = model["vireo"]["io"]
    return facts


def _picture(facts: Mapping[str, Any]) -> bytes:
    """A white picture of a size that the model takes."""
    side = min(facts["max_side"], max(facts["min_side"], -(-64 // facts["multiple"]) * facts["multiple"]))
    file = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(file, "PNG")
    return file.getvalue()


def _http(target: Target) -> str:
    facts = _facts(target)
    body: dict[str, Any] = {"model": target.model, "prompt": facts.get("example", ""), "vireo": {"background": False}}
    path = "/v1/images/generations"
    if "image" in facts["inputs"]:
        path, body["image"] = "/v1/images/edits", base64.b64encode(_picture(facts)).decode()
    answer = target.http.post(path, json=body).raise_for_status().json()
    with Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))) as image:
        return f"{image.width}x{image.height}"


def _grpc(target: Target) -> str:
    facts, stub = _facts(target), vireo_pb2_grpc.VireoStub(target.channel)
    prompt = facts.get("example", "")
    if "image" in facts["inputs"]:
        edit = vireo_pb2.EditImageRequest(model=target.model, prompt=prompt, image=_picture(facts))
        made = stub.EditImage(edit, timeout=TIMEOUT_S)
    else:
        made = stub.GenerateImage(vireo_pb2.GenerateImageRequest(model=target.model, prompt=prompt), timeout=TIMEOUT_S)
    return f"{made.width}x{made.height}, {made.media_type}"


CHECKS: Final[Mapping[str, Check]] = {
    "POST /v1/images/generations or edits": _http,
    "vireo.v1.Vireo/GenerateImage or EditImage": _grpc,
}
