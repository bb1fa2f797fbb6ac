"""Open Inference Protocol v2 over gRPC: ``inference.GRPCInferenceService/ModelInfer`` with raw tensors."""

from __future__ import annotations

import struct
from typing import Any

import grpc
from vireo_pb.oip import open_inference_pb2

from loadtest.clients import oip
from loadtest.clients.base import Payload, Prepared, Reply
from loadtest.clients.grpc_base import GrpcCallClient, GrpcChannel
from loadtest.clients.outcomes import Answer, WrongAnswer

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class GrpcOipClient(GrpcCallClient):
    """Encoded images in a raw BYTES tensor."""

    def _bind(self, channel: GrpcChannel) -> Any:
        return channel.unary(_METHOD, open_inference_pb2.ModelInferResponse.FromString)

    def prepare(self, payload: Payload) -> Prepared:
        """The serialised request."""
        request = open_inference_pb2.ModelInferRequest(
            model_name=payload.model,
            parameters={name: _parameter(value) for name, value in oip.request_parameters(payload).items()},
            raw_input_contents=[oip.pack_bytes(payload.images)],
        )
        request.inputs.add(name=oip.INPUT, datatype="BYTES", shape=[len(payload.images)])
        for name in oip.OUTPUTS:
            request.outputs.add(name=name)
        wire = request.SerializeToString()
        return Prepared(payload=payload, wire=wire, request_bytes=len(wire))

    async def send(self, prepared: Prepared) -> Reply:
        """Call and wait; every failure of the target is a ``Reply``."""
        payload = prepared.payload
        try:
            response = await self._call(prepared.wire, metadata=self._channel.metadata(payload.tenant))
        except grpc.aio.AioRpcError as error:
            return self._channel.failed(error)
        return self._channel.answered(lambda: _read(response, payload), response.ByteSize())


def _parameter(value: int | float | str) -> open_inference_pb2.InferParameter:
    if isinstance(value, str):
        return open_inference_pb2.InferParameter(string_param=value)
    if isinstance(value, int):
        return open_inference_pb2.InferParameter(int64_param=value)
    return open_inference_pb2.InferParameter(double_param=value)


def _read(response: Any, payload: Payload) -> Answer:
    """Raises: WrongAnswer."""
    raws = response.raw_output_contents
    if raws and len(raws) != len(response.outputs):
        raise WrongAnswer(f"{len(raws)} raw outputs for {len(response.outputs)} outputs")
    outputs = {
        output.name: _elements(output, raws[number] if raws else None) for number, output in enumerate(response.outputs)
    }
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
        for name, value in response.parameters.items()
    }
    return oip.read_outputs(outputs, parameters, payload)


def _elements(output: Any, raw: bytes | None) -> list[Any]:
    """Elements of an output tensor, raw or typed; those of BYTES as text."""
    if output.datatype == "BYTES":
        elements = output.contents.bytes_contents if raw is None else oip.unpack_bytes(raw)
        return [element.decode("utf-8", "replace") for element in elements]
    if output.datatype == "INT32":
        return list(output.contents.int_contents) if raw is None else _int32s(raw)
    raise WrongAnswer(f"output {output.name} has datatype {output.datatype}")


def _int32s(raw: bytes) -> list[int]:
    if len(raw) % 4:
        raise WrongAnswer(f"{len(raw)} bytes are no INT32 tensor")
    return [number for (number,) in struct.iter_unpack("<i", raw)]
