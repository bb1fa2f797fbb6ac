"""A Ray Serve application as a competent user writes it from the documentation: a gateway and an inner deployment.

    python -m tests.benchmarks.apps.plain_serve --http-port P --grpc-port Q --run-dir DIR --operating-point NAME

FastAPI ingress, decoding in the gateway, one handle call per image, the model in the inner deployment, one request at a
time; no batching, no policy. Serve's own flags come from the environment. Runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import logging
import signal
import threading
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.handle import DeploymentHandle
from vireo_pb.vireo.v1 import vireo_pb2

from tests.benchmarks.apps.model_call import Classified, Decoder, Model, Pixels
from tests.benchmarks.apps.wire import ClassifyBody, to_json, to_proto

SERVICER = "vireo_pb.vireo.v1.vireo_pb2_grpc.add_VireoServicer_to_server"
MAX_ONGOING = 256
api = FastAPI()


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class PlainModel:
    def __init__(self, operating_point: str) -> None:
        self._model = Model(operating_point)

    def __call__(self, pixels: Pixels) -> Classified:
        return self._model(pixels)


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
@serve.ingress(api)
class PlainGateway:
    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._decode = Decoder()
        self._model = model

    @api.post("/v1/classify")
    async def classify(self, body: ClassifyBody) -> dict[str, Any]:
        return to_json(body.model, await self._answers([base64.b64decode(image) for image in body.images]))

    async def Classify(self, request: vireo_pb2.ClassifyRequest) -> vireo_pb2.ClassifyResponse:
        return to_proto(request.model, await self._answers(list(request.images)))

    async def _answers(self, images: list[bytes]) -> list[Classified]:
        return list(await asyncio.gather(*(self._model.remote(self._decode(image)) for image in images)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--operating-point", required=True)
    args = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 << 20,
        _temp_dir=args.run_dir,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    stop = threading.Event()
    try:
        serve.start(
            http_options={"host": "127.0.0.1", "port": args.http_port},
            grpc_options=gRPCOptions(port=args.grpc_port, grpc_servicer_functions=[SERVICER]),
        )
        serve.run(PlainGateway.bind(PlainModel.bind(args.operating_point)), name="plain", route_prefix="/")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    # Deployments are pickled by reference only when their module has a name that replicas can import.
    from tests.benchmarks.apps import plain_serve

    plain_serve.main()
