"""NVIDIA's own clients against the front door, over real sockets.

They run in a process of their own: their protobuf descriptors have the same names as ours.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import grpc
import pytest
import uvicorn

from serving.front.grpc.registration import add_inference_to_server
from tests.support.clients import GOOD_LABEL, GOOD_PNG, FrontDoor
from tests.support.fake_service import MODEL

COMMON = f"""
import sys
import numpy as np
PNG = bytes.fromhex({GOOD_PNG.hex()!r})
MODEL, LABEL = {MODEL!r}, {GOOD_LABEL.encode()!r}
client = protocol.InferenceServerClient(sys.argv[1])

def encoded(*images, shape=None):
    tensor = protocol.InferInput("IMAGE", shape or [len(images)], "BYTES")
    return tensor.set_data_from_numpy(np.array(images, object).reshape(shape or [-1]))

def pixels(array, datatype):
    return protocol.InferInput("PIXELS", list(array.shape), datatype).set_data_from_numpy(array)

assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
assert not client.is_model_ready("none") and not client.is_model_ready(MODEL, "2")

result = client.infer(MODEL, [encoded(PNG, b"junk", PNG)], request_id="abc", parameters={{"top_k": 2}})
assert list(result.as_numpy("LABEL")) == [LABEL, b"", LABEL], result.as_numpy("LABEL")
assert result.as_numpy("EXIT").tolist() == [4, 0, 4] and result.as_numpy("EXIT").dtype == np.int32
assert result.as_numpy("SCORE").dtype == np.float32 and result.as_numpy("SCORE")[0] > 0.4
assert result.as_numpy("TOP_LABELS").shape == (3, 2) and result.as_numpy("TOP_SCORES").shape == (3, 2)
errors = list(result.as_numpy("ERROR"))
assert errors[0] == b"" and b"unsupported_media_type" in errors[1], errors

asked = [protocol.InferRequestedOutput("SCORE", class_count=2), protocol.InferRequestedOutput("LABEL")]
result = client.infer(MODEL, [encoded(PNG)], outputs=asked, priority=1, timeout=20_000_000)
best = result.as_numpy("SCORE")[0, 0].decode().split(":")
assert float(best[0]) > 0.4 and best[2] == LABEL.decode(), best

asked = [protocol.InferRequestedOutput("LABEL")]
result = client.infer(MODEL, [encoded(PNG, shape=[1, 1])], outputs=asked, model_version="1")
assert list(result.as_numpy("LABEL")) == [LABEL] and result.as_numpy("EXIT") is None

bright = np.full((2, 8, 8, 3), 250, np.uint8)
for tensor in (pixels(bright, "UINT8"), pixels((bright / 255).astype(np.float32), "FP32")):
    assert list(client.infer(MODEL, [tensor]).as_numpy("LABEL")) == [b"class 9"] * 2
"""

HTTP = f"""
import tritonclient.http as protocol
from tritonclient.utils import InferenceServerException
{COMMON}
metadata = client.get_model_metadata(MODEL)
assert metadata["inputs"][0] == {{"name": "IMAGE", "datatype": "BYTES", "shape": [-1]}}, metadata
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
assert client.get_model_config(MODEL)["input"][0]["data_type"] == "TYPE_STRING"
result = client.infer(MODEL, [encoded(PNG)], request_id="abc", parameters={{"vireo_latency_ms": 50.0}})
response = result.get_response()
assert response["id"] == "abc" and response["parameters"]["vireo_energy_j"] == 0.25, response

as_json = [protocol.InferRequestedOutput("LABEL", binary_data=False), protocol.InferRequestedOutput("EXIT")]
result = client.infer(MODEL, [encoded(PNG)], outputs=as_json)
assert list(result.as_numpy("LABEL")) == [LABEL.decode()] and result.as_numpy("EXIT").tolist() == [4]

import base64
text = protocol.InferInput("IMAGE", [1], "BYTES")
text.set_data_from_numpy(np.array([base64.b64encode(PNG)], object), binary_data=False)
assert list(client.infer(MODEL, [text]).as_numpy("LABEL")) == [LABEL]
numbers = protocol.InferInput("PIXELS", [2, 8, 8, 3], "UINT8").set_data_from_numpy(bright, binary_data=False)
assert list(client.infer(MODEL, [numbers]).as_numpy("LABEL")) == [b"class 9"] * 2
try:
    client.infer("none", [encoded(PNG)])
except InferenceServerException as error:
    assert error.status() == "404" and error.message().startswith("model 'none' is not served here"), str(error)
else:
    raise AssertionError
print("well")
"""

GRPC = f"""
import queue
import tritonclient.grpc as protocol
from tritonclient.utils import InferenceServerException
{COMMON}
metadata = client.get_model_metadata(MODEL)
assert metadata.inputs[0].name == "IMAGE" and list(metadata.outputs[3].shape) == [-1, -1]
result = client.infer(MODEL, [encoded(PNG)], request_id="abc", parameters={{"vireo_latency_ms": 50.0}})
response = result.get_response()
assert response.id == "abc" and response.parameters["vireo_energy_j"].double_param == 0.25, response
try:
    client.infer("none", [encoded(PNG)])
except InferenceServerException as error:
    assert error.status() == "StatusCode.NOT_FOUND" and "none" in str(error), str(error)
else:
    raise AssertionError

answers = queue.Queue()
client.start_stream(callback=lambda result, error: answers.put((result, error)))
client.async_stream_infer(MODEL, [encoded(PNG)], request_id="good")
client.async_stream_infer("none", [encoded(PNG)], request_id="bad")
got = [answers.get(timeout=20) for _ in range(2)]
client.stop_stream()
(good,) = [result for result, error in got if error is None]
(bad,) = [error for result, error in got if error is not None]
assert list(good.as_numpy("LABEL")) == [LABEL] and good.get_response().id == "good"
assert "model_not_found" in str(bad), bad
print("well")
"""


async def run(script: str, port: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        f"127.0.0.1:{port}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(90):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, err.decode()
    assert out.decode().strip() == "well"


@pytest.fixture
async def http_port() -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(FrontDoor().app, log_level="error", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def test_http_client_with_binary_and_json_tensors(http_port: int) -> None:
    await run(HTTP, http_port)


async def test_grpc_client_unary_and_streaming() -> None:
    server = grpc.aio.server()
    add_inference_to_server(FrontDoor().methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        await run(GRPC, port)
    finally:
        await server.stop(None)
