"""What ``vireo up`` asks a classifier, by surface."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Final

import httpx
from vireo_pb.oip import open_inference_pb2, open_inference_pb2_grpc
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from serving.client.checks import TIMEOUT_S, Check, Target, digit_png


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
    (result,) = vireo_pb2_grpc.VireoStub(target.channel).Classify(request, timeout=TIMEOUT_S).results
    return f"{result.label} ({result.score:.3f}, exit {result.exit})"


def _stream_grpc(target: Target) -> str:
    requests = [vireo_pb2.ClassifyRequest(model=target.model, images=[digit_png()], id=str(n)) for n in range(4)]
    answers = list(vireo_pb2_grpc.VireoStub(target.channel).ClassifyStream(iter(requests), timeout=TIMEOUT_S))
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
    return f"{len(stub.ModelInfer(request, timeout=TIMEOUT_S).outputs)} output tensors"


CHECKS: Final[Mapping[str, Check]] = {
    "POST /v1/classify (JSON)": _classify_http,
    "POST /v1/classify (multipart)": _classify_multipart,
    "POST /v2/models/{model}/infer": _infer_http,
    "vireo.v1.Vireo/Classify": _classify_grpc,
    "vireo.v1.Vireo/ClassifyStream": _stream_grpc,
    "inference.GRPCInferenceService/ModelInfer": _infer_grpc,
}
