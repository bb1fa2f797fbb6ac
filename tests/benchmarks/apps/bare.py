"""The limit: no Ray, no hop, no policy. FastAPI on uvicorn, and a grpc.aio server, with the model in the process.

    python -m tests.benchmarks.apps.bare http|grpc --port P --operating-point NAME

Two processes, because each is the limit of its own surface. Runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import signal
from typing import Any

import grpc
import uvicorn
import uvloop
from fastapi import FastAPI
from vireo_pb.vireo.v1 import vireo_pb2, vireo_pb2_grpc

from tests.benchmarks.apps.model_call import Classified, Decoder, Model
from tests.benchmarks.apps.wire import ClassifyBody, to_json, to_proto


class Pipeline:
    def __init__(self, operating_point: str) -> None:
        self._decode, self._model = Decoder(), Model(operating_point)

    def __call__(self, images: list[bytes]) -> list[Classified]:
        return [self._model(self._decode(image)) for image in images]


def http_app(pipeline: Pipeline) -> FastAPI:
    api = FastAPI()

    @api.post("/v1/classify")
    async def classify(body: ClassifyBody) -> dict[str, Any]:
        return to_json(body.model, pipeline([base64.b64decode(image) for image in body.images]))

    return api


class Servicer(vireo_pb2_grpc.VireoServicer):
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def Classify(self, request: vireo_pb2.ClassifyRequest, context: object) -> vireo_pb2.ClassifyResponse:
        return to_proto(request.model, self._pipeline(list(request.images)))


async def serve_grpc(pipeline: Pipeline, port: int) -> None:
    server = grpc.aio.server()
    vireo_pb2_grpc.add_VireoServicer_to_server(Servicer(pipeline), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.stop(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surface", choices=("http", "grpc"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--operating-point", required=True)
    args = parser.parse_args()
    pipeline = Pipeline(args.operating_point)
    if args.surface == "http":
        uvicorn.run(http_app(pipeline), host="127.0.0.1", port=args.port, access_log=False, log_level="warning")
    else:
        uvloop.run(serve_grpc(pipeline, args.port))


if __name__ == "__main__":
    main()
