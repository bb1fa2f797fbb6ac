"""One real request of each kind against the system that has just come up, through the same doors as any client's.

Whether an answer is right is not judged; that it is whole, and of the promised kind, is.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from vireo_pb.oip import open_inference_pb2, open_inference_pb2_grpc
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.cli.run_state import RunState
from serving.errors import ConfigError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_TIMEOUT_S = 180.0
_READY_WITHIN_S = 30.0
_MAX_TOKENS = 64
_MAX_SHOWN_CHARS = 60
_PROMPT = "a red circle moves right"


@dataclass(frozen=True)
class Target:
    """Both doors, and the model that is asked."""

    http: httpx.Client
    channel: grpc.Channel
    model: str = ""


Check: TypeAlias = Callable[[Target], str]


def check_every_surface(state: RunState, console: Console, *, is_open: bool) -> None:
    """Ask, and print what came back: the first model of each task. Where keys are needed, only what asks for none: the
    server holds their hashes alone.

    Raises: ConfigError: an answer did not come or was wrong; the system must not be announced as up.
    """
    with (
        httpx.Client(base_url=state.http_url, timeout=_TIMEOUT_S) as http,
        grpc.insecure_channel(state.grpc_address) as channel,
    ):
        _run(_HEALTH, Target(http, channel), console)
        for task, served in state.tasks.items() if is_open else ():
            _run(CHECKS.get(task, {}), Target(http, channel, served[0]), console)


def _run(checks: Mapping[str, Check], target: Target, console: Console) -> None:
    for name, check in checks.items():
        started_s = time.perf_counter()
        try:
            answer = check(target)
        except Exception as error:
            raise ConfigError(f"self-check failed: {name}: {type(error).__name__}: {error}") from error
        took_ms = 1e3 * (time.perf_counter() - started_s)
        console.print(f"  {name:<43} {answer:<22} {took_ms:6.1f} ms", markup=False, soft_wrap=True)


# -- health ----------------------------------------------------------------------------------------------------------


def _health_http(target: Target) -> str:
    """The gateway may learn a moment later than Serve that everything runs."""
    give_up_s = time.monotonic() + _READY_WITHIN_S
    while (answer := target.http.get("/v2/health/ready")).status_code == 503 and time.monotonic() < give_up_s:
        time.sleep(0.1)
    return str(answer.raise_for_status().status_code)


def _health_grpc(target: Target) -> str:
    answer = health_pb2_grpc.HealthStub(target.channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


# -- classify --------------------------------------------------------------------------------------------------------


def digit_png(digit: str = "7") -> bytes:
    """A rendered digit, 64x64, dark on light."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).text((32, 32), digit, "black", ImageFont.load_default(52), anchor="mm")
    return _png(image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _classify_http(target: Target) -> str:
    body = {"model": target.model, "image": base64.b64encode(digit_png()).decode()}
    return _first_result(target.http.post("/v1/classify", json=body))


def _classify_multipart(target: Target) -> str:
    files = {"file": ("7.png", digit_png(), "image/png")}
    return _first_result(target.http.post("/v1/classify", data={"model": target.model}, files=files))


def _first_result(answer: httpx.Response) -> str:
    result = answer.raise_for_status().json()["results"][0]
    return f"{result['label']} ({result['score']:.3f}, exit {result['exit']})"


def _infer_http(target: Target) -> str:
    picture = digit_png()
    parameters = {"binary_data_size": len(picture) + 4}
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    outputs = target.http.post(
        f"/v2/models/{target.model}/infer",
        content=head + len(picture).to_bytes(4, "little") + picture,
        headers={"inference-header-content-length": str(len(head))},
    )
    by_name = {output["name"]: output for output in outputs.raise_for_status().json()["outputs"]}
    return f"{by_name['LABEL']['data'][0]} ({by_name['SCORE']['data'][0]:.3f})"


def _classify_grpc(target: Target) -> str:
    request = vireo_pb2.ClassifyRequest(model=target.model, images=[digit_png()])
    (result,) = vireo_pb2_grpc.VireoStub(target.channel).Classify(request, timeout=_TIMEOUT_S).results
    return f"{result.label} ({result.score:.3f}, exit {result.exit})"


def _stream_grpc(target: Target) -> str:
    requests = [vireo_pb2.ClassifyRequest(model=target.model, images=[digit_png()], id=str(n)) for n in range(4)]
    answers = list(vireo_pb2_grpc.VireoStub(target.channel).ClassifyStream(iter(requests), timeout=_TIMEOUT_S))
    if {answer.id for answer in answers} != {request.id for request in requests}:
        raise ValueError(f"{len(answers)} answers for {len(requests)} requests")
    return f"{len(answers)} answers, all {answers[0].results[0].label}"


def _infer_grpc(target: Target) -> str:
    message, picture = open_inference_pb2.ModelInferRequest, digit_png()
    request = message(
        model_name=target.model,
        inputs=[message.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[1])],
        raw_input_contents=[len(picture).to_bytes(4, "little") + picture],
    )
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(target.channel)
    return f"{len(stub.ModelInfer(request, timeout=_TIMEOUT_S).outputs)} output tensors"


# -- chat ------------------------------------------------------------------------------------------------------------


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
    return _png(image)


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
    responses = list(vireo_pb2_grpc.VireoStub(target.channel).Chat(request, timeout=_TIMEOUT_S))
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


# -- videos ----------------------------------------------------------------------------------------------------------


def _few_steps(target: Target) -> dict[str, Any]:
    """The cheapest clip: the sampler of few steps where there is one."""
    block = target.http.get(f"/v1/models/{target.model}").raise_for_status().json()["vireo"]
    return {"sampler": "consistency", "num_inference_steps": 4} if "consistency" in block["samplers"] else {}


def _video_http(target: Target) -> str:
    """Make a clip, wait for it, and remove it again."""
    body = {"model": target.model, "prompt": _PROMPT, **_few_steps(target)}
    answer = target.http.post("/v1/videos/sync", json=body).raise_for_status()
    checked(answer.content, answer.headers["etag"].strip('"'))
    removed = target.http.delete(f"/v1/videos/{answer.headers['x-vireo-video-id']}").raise_for_status()
    if not removed.json()["deleted"]:
        raise ValueError("the clip could not be removed")
    return f"MP4 of {len(answer.content)} bytes"


def _video_grpc(target: Target) -> str:
    """Make a clip, hear of its progress, and remove it again."""
    request = vireo_pb2.GenerateVideoRequest(model=target.model, prompt=_PROMPT, **_few_steps(target))
    responses = list(vireo_pb2_grpc.VireoStub(target.channel).GenerateVideo(request, timeout=_TIMEOUT_S))
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


_HEALTH: Mapping[str, Check] = {"GET /v2/health/ready": _health_http, "grpc.health.v1.Health/Check": _health_grpc}
CHECKS: Mapping[str, Mapping[str, Check]] = {
    "classify": {
        "POST /v1/classify (JSON)": _classify_http,
        "POST /v1/classify (multipart)": _classify_multipart,
        "POST /v2/models/{model}/infer": _infer_http,
        "vireo.v1.Vireo/Classify": _classify_grpc,
        "vireo.v1.Vireo/ClassifyStream": _stream_grpc,
        "inference.GRPCInferenceService/ModelInfer": _infer_grpc,
    },
    "chat": {
        "POST /v1/chat/completions": _chat_http,
        "POST /v1/chat/completions (events)": _chat_sse,
        "vireo.v1.Vireo/Chat": _chat_grpc,
    },
    "videos": {"POST /v1/videos/sync": _video_http, "vireo.v1.Vireo/GenerateVideo": _video_grpc},
}
"""What is asked of each task, by surface."""
