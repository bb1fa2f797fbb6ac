"""One real request of each kind against the system that has just come up, through the same doors as any client's."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from vireo_pb.oip import open_inference_pb2, open_inference_pb2_grpc
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.cli import self_check_chat, self_check_video
from serving.cli.run_state import RunState
from serving.config import ResolvedConfig
from serving.errors import ConfigError

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class _Target:
    http: httpx.Client
    channel: grpc.Channel
    model: str
    image: bytes


def check_every_surface(config: ResolvedConfig, console: Console) -> None:
    """Ask, and print what came back. Skipped where keys are needed: the server holds only their hashes.

    Raises: ConfigError: an answer did not come or was wrong; the system must not be announced as up.
    """
    state = RunState.read(config.run_dir)
    assert state is not None
    with (
        httpx.Client(base_url=state.http_url, timeout=_TIMEOUT_S) as http,
        grpc.insecure_channel(state.grpc_address) as channel,
    ):
        is_open = config.allow_anonymous_loopback
        target = _Target(http, channel, state.models[0], digit_png("7"))
        for name, check in _OPEN + (_KEYED if is_open else ()):
            _show(name, partial(check, target), console)
        check_chat(http, channel, is_open=is_open, console=console)
        if is_open and config.models_for("videos"):
            check_video(http, channel, console=console)


def check_video(http: httpx.Client, channel: grpc.Channel, *, console: Console) -> None:
    """Make a clip of the first video model on each surface that has video.

    Raises: ConfigError: none is listed, or a clip did not come.
    """
    model = self_check_video.served_video_model(http)
    if model is None:
        raise ConfigError("self-check failed: a video model is configured and GET /v1/models lists none")
    _show("POST /v1/videos/sync", partial(self_check_video.video_http, http, model), console)
    _show("vireo.v1.Vireo/GenerateVideo", partial(self_check_video.video_grpc, channel, http, model), console)


def check_chat(http: httpx.Client, channel: grpc.Channel, *, is_open: bool, console: Console) -> None:
    """Ask the first chat model on each surface that has chat; where none is served, say that this is left out.

    Raises: ConfigError: an answer did not come.
    """
    model = self_check_chat.served_chat_model(http) if is_open else None
    checks: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("POST /v1/chat/completions", partial(self_check_chat.chat_http, http)),
        ("POST /v1/chat/completions (events)", partial(self_check_chat.chat_sse, http)),
        ("vireo.v1.Vireo/Chat", partial(self_check_chat.chat_grpc, channel)),
    )
    for name, check in checks if is_open else ():
        if model is None:
            console.print(f"  {name:<43} skipped: no chat model is served", soft_wrap=True)
        else:
            _show(name, partial(check, model), console)


def _show(name: str, ask: Callable[[], str], console: Console) -> None:
    started_s = time.perf_counter()
    answer = _ask(name, ask)
    took_ms = 1e3 * (time.perf_counter() - started_s)
    console.print(f"  {name:<43} {answer:<22} {took_ms:6.1f} ms", markup=False, soft_wrap=True)


def _ask(name: str, ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception as error:
        raise ConfigError(f"self-check failed: {name}: {type(error).__name__}: {error}") from error


def digit_png(digit: str) -> bytes:
    """A rendered digit, 64x64, dark on light."""
    image = Image.new("RGB", (64, 64), "white")
    font = ImageFont.load_default(52)
    ImageDraw.Draw(image).text((32, 32), digit, "black", font, anchor="mm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _health_http(target: _Target) -> str:
    """The gateway may learn a moment later than Serve that everything runs."""
    give_up_s = time.monotonic() + _TIMEOUT_S
    while (answer := target.http.get("/v2/health/ready")).status_code == 503 and time.monotonic() < give_up_s:
        time.sleep(0.1)
    return str(answer.raise_for_status().status_code)


def _health_grpc(target: _Target) -> str:
    answer = health_pb2_grpc.HealthStub(target.channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _classify_http(target: _Target) -> str:
    body = {"model": target.model, "image": base64.b64encode(target.image).decode()}
    result = target.http.post("/v1/classify", json=body).raise_for_status().json()["results"][0]
    return f"{result['label']} ({result['score']:.3f}, exit {result['exit']})"


def _classify_multipart(target: _Target) -> str:
    answer = target.http.post(
        "/v1/classify", data={"model": target.model}, files={"file": ("7.png", target.image, "image/png")}
    )
    result = answer.raise_for_status().json()["results"][0]
    return f"{result['label']} ({result['score']:.3f}, exit {result['exit']})"


def _infer_http(target: _Target) -> str:
    image = {
        "name": "IMAGE",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(target.image) + 4},
    }
    head = httpx.Request("POST", "http://x", json={"inputs": [image]}).content
    outputs = target.http.post(
        f"/v2/models/{target.model}/infer",
        content=head + len(target.image).to_bytes(4, "little") + target.image,
        headers={"inference-header-content-length": str(len(head))},
    )
    by_name = {output["name"]: output for output in outputs.raise_for_status().json()["outputs"]}
    return f"{by_name['LABEL']['data'][0]} ({by_name['SCORE']['data'][0]:.3f})"


def _classify_grpc(target: _Target) -> str:
    request = vireo_pb2.ClassifyRequest(model=target.model, images=[target.image])
    answer = vireo_pb2_grpc.VireoStub(target.channel).Classify(request, timeout=_TIMEOUT_S)
    return f"{answer.results[0].label} ({answer.results[0].score:.3f}, exit {answer.results[0].exit})"


def _stream_grpc(target: _Target) -> str:
    requests = [vireo_pb2.ClassifyRequest(model=target.model, images=[target.image], id=str(n)) for n in range(4)]
    answers = list(vireo_pb2_grpc.VireoStub(target.channel).ClassifyStream(iter(requests), timeout=_TIMEOUT_S))
    if {answer.id for answer in answers} != {request.id for request in requests}:
        raise ValueError(f"{len(answers)} answers for {len(requests)} requests")
    return f"{len(answers)} answers, all {answers[0].results[0].label}"


def _infer_grpc(target: _Target) -> str:
    message = open_inference_pb2.ModelInferRequest
    request = message(
        model_name=target.model,
        inputs=[message.InferInputTensor(name="IMAGE", datatype="BYTES", shape=[1])],
        raw_input_contents=[len(target.image).to_bytes(4, "little") + target.image],
    )
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(target.channel)
    answer = stub.ModelInfer(request, timeout=_TIMEOUT_S)
    return f"{len(answer.outputs)} output tensors"


_Check = Callable[[_Target], str]
_OPEN: tuple[tuple[str, _Check], ...] = (
    ("GET /v2/health/ready", _health_http),
    ("grpc.health.v1.Health/Check", _health_grpc),
)
_KEYED: tuple[tuple[str, _Check], ...] = (
    ("POST /v1/classify (JSON)", _classify_http),
    ("POST /v1/classify (multipart)", _classify_multipart),
    ("POST /v2/models/{model}/infer", _infer_http),
    ("vireo.v1.Vireo/Classify", _classify_grpc),
    ("vireo.v1.Vireo/ClassifyStream", _stream_grpc),
    ("inference.GRPCInferenceService/ModelInfer", _infer_grpc),
)
