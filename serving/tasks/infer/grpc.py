"""``inference.GRPCInferenceService``: messages to requests, replies to messages; for tensors see ``tensors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from google.protobuf.json_format import ParseDict
from vireo_pb.oip import open_inference_pb2 as oip

from serving.domain import Budget, ClassifyReply, Surface, UnaryReply, UnaryRequest
from serving.errors import InvalidRequest, ServingError, UnknownField, UnknownModel, UnsupportedField
from serving.front.front import MODEL_VERSION, shown
from serving.front.grpc.call import GrpcCall
from serving.front.grpc.messages import check_id
from serving.front.grpc.registration import INFERENCE
from serving.front.grpc.rpc import Rpc
from serving.front.status import message_of
from serving.limits import IngressLimits
from serving.service import Card
from serving.tasks.infer.admin import card_for_infer, model_config, model_metadata, repository_index, server_metadata
from serving.tasks.infer.parameters import Parameter, read_parameters, report_parameters
from serving.tasks.infer.schemas import MAX_DIMS, MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS
from serving.tasks.infer.statistics import statistics
from serving.tasks.infer.tensors import (
    CallFacts,
    InputTensor,
    OutputTensor,
    Wanted,
    chosen_outputs,
    most_classes,
    outputs_from_reply,
    reply_to_tensors,
    request_from_tensors,
)

_CONTENTS: Final = {
    "BYTES": "bytes_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
}


async def infer(call: GrpcCall, message: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """``inference.GRPCInferenceService/ModelInfer``."""
    card = card_for_infer(call.front, message.model_name, message.model_version)
    call.visit.model = card.id
    check_id(message.id)
    _check_counts(message)
    wanted = chosen_outputs([(output.name, _classification(output)) for output in message.outputs], card)
    request = await request_from_infer(message, card, wanted, call)
    return infer_from_reply(message, card, wanted, await reply_to_tensors(call, request))


async def infer_in_stream(call: GrpcCall, message: oip.ModelInferRequest) -> oip.ModelStreamInferResponse:
    """Each request of ``ModelStreamInfer``. It has one answer, which is its last."""
    answer = await infer(call, message)
    answer.parameters["triton_final_response"].bool_param = True
    return oip.ModelStreamInferResponse(infer_response=answer)


async def request_from_infer(
    message: oip.ModelInferRequest, card: Card, wanted: Sequence[Wanted], call: GrpcCall
) -> UnaryRequest:
    """Return the request. Raises: ClientError."""
    limits = call.front.limits
    wishes = read_parameters(_parameters(message.parameters), Budget(), card, limits)
    deadlines = [deadline for deadline in (wishes.deadline_s, call.deadline_s()) if deadline is not None]
    facts = CallFacts(
        request_id=call.request_id,
        surface=call.surface,
        tenant=call.tenant,
        model=card.id,
        budget=wishes.budget,
        deadline_s=min(deadlines, default=None),
    )
    top_k = most_classes(wishes.top_k, wanted, limits)
    return await request_from_tensors(_tensors(message), card, top_k, limits, facts)


def _classification(output: oip.ModelInferRequest.InferRequestedOutputTensor) -> Parameter | None:
    sent = _parameters(output.parameters)
    classes = sent.pop("classification", None)
    _refuse_parameters(sent, f"output {shown(output.name)}")
    return classes


def _check_counts(message: oip.ModelInferRequest) -> None:
    """Refuse absurd numbers of anything before each is turned into a Python object."""
    counts = {
        "inputs": (len(message.inputs), MAX_INPUTS),
        "outputs": (len(message.outputs), MAX_OUTPUTS),
        "parameters": (len(message.parameters), MAX_PARAMETERS),
    }
    for name, (count, limit) in counts.items():
        if count > limit:
            raise InvalidRequest(f"request has {count} {name}; the limit is {limit}. Send fewer", param=name)
    for item in message.inputs:
        if len(item.shape) > MAX_DIMS:
            raise InvalidRequest(
                f"input {shown(item.name)} has {len(item.shape)} dimensions; the limit is {MAX_DIMS}", param="inputs"
            )


def _tensors(message: oip.ModelInferRequest) -> list[InputTensor]:
    raws = message.raw_input_contents
    if raws and len(raws) != len(message.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raws)} entries for {len(message.inputs)} inputs; send one per input, or none",
            param="raw_input_contents",
        )
    return [_tensor(item, raws[index] if raws else None) for index, item in enumerate(message.inputs)]


def _tensor(item: oip.ModelInferRequest.InferInputTensor, raw: bytes | None) -> InputTensor:
    _refuse_parameters(item.parameters, f"input {shown(item.name)}")
    filled = [field.name for field, _ in item.contents.ListFields()]
    field = _CONTENTS.get(item.datatype)
    if filled and filled != [field]:
        raise InvalidRequest(
            f"input {shown(item.name)} has its elements in {', '.join(filled)}; "
            f"{shown(item.datatype)} elements go into {field or 'raw_input_contents'}",
            param="inputs",
        )
    return InputTensor(
        name=item.name,
        datatype=item.datatype,
        shape=tuple(item.shape),
        raw=raw,
        values=getattr(item.contents, filled[0]) if filled else None,
    )


def _refuse_parameters(parameters: Mapping[str, Any], where: str) -> None:
    for name in parameters:
        raise UnknownField(f"parameter {shown(name)} of {where} is unknown; remove it", param=f"parameters.{name[:64]}")


def _parameters(parameters: Mapping[str, oip.InferParameter]) -> dict[str, Parameter]:
    values: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter {shown(name)} has no value; send one", param=f"parameters.{name[:64]}")
        values[name] = getattr(parameter, choice)
    return values


def infer_from_reply(
    message: oip.ModelInferRequest, card: Card, wanted: Sequence[Wanted], reply: ClassifyReply | UnaryReply
) -> oip.ModelInferResponse:
    """Return the answer: raw if the request was raw, typed otherwise."""
    outputs = outputs_from_reply(reply, card, wanted)
    raw = bool(message.raw_input_contents)
    return oip.ModelInferResponse(
        model_name=reply.model,
        model_version=MODEL_VERSION,
        id=message.id,
        parameters={name: _parameter(value) for name, value in report_parameters(reply.report).items()},
        outputs=[_output(tensor, raw) for tensor in outputs],
        raw_output_contents=[tensor.to_raw() for tensor in outputs] if raw else [],
    )


def _parameter(value: str | float) -> oip.InferParameter:
    return oip.InferParameter(string_param=value) if isinstance(value, str) else oip.InferParameter(double_param=value)


def _output(tensor: OutputTensor, raw: bool) -> oip.ModelInferResponse.InferOutputTensor:
    contents = None if raw else oip.InferTensorContents(**{_CONTENTS[tensor.datatype]: tensor.values})  # type: ignore[arg-type]
    return oip.ModelInferResponse.InferOutputTensor(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, contents=contents
    )


# -- RPCs ------------------------------------------------------------------------------------------------------------


def _refusal(id: str, error: ServingError) -> oip.ModelStreamInferResponse:
    return oip.ModelStreamInferResponse(
        error_message=f"[{error.code}] {message_of(error)}", infer_response=oip.ModelInferResponse(id=id)
    )


async def _server_live(call: GrpcCall, message: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
    return oip.ServerLiveResponse(live=True)


async def _server_ready(call: GrpcCall, message: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
    return oip.ServerReadyResponse(ready=call.front.service.is_ready())


async def _model_ready(call: GrpcCall, message: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
    try:
        model = _card(call, message).id
    except UnknownModel:
        return oip.ModelReadyResponse(ready=False)
    return oip.ModelReadyResponse(ready=call.front.service.is_model_ready(model))


async def _server_metadata(call: GrpcCall, message: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
    return oip.ServerMetadataResponse(**server_metadata())


async def _model_metadata(call: GrpcCall, message: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
    return oip.ModelMetadataResponse(**model_metadata(_card(call, message)))  # type: ignore[arg-type]


async def _model_config(call: GrpcCall, message: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
    config = model_config(_card(call, message), call.front.limits.max_images)
    return ParseDict({"config": config}, oip.ModelConfigResponse())


async def _model_statistics(call: GrpcCall, message: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
    cards = (_card(call, message),) if message.name else call.front.service.cards()
    found = {"model_stats": await statistics(cards)}
    return ParseDict(found, oip.ModelStatisticsResponse(), ignore_unknown_fields=True)


async def _repository_index(call: GrpcCall, message: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
    if message.repository_name:
        raise UnsupportedField(
            f"repository_name is {shown(message.repository_name)}; there is one repository: leave it out",
            param="repository_name",
        )
    index = repository_index(call.front.service, only_ready=message.ready)
    return oip.RepositoryIndexResponse(models=[oip.RepositoryIndexResponse.ModelIndex(**one) for one in index])


async def _system_regions(
    call: GrpcCall, message: oip.SystemSharedMemoryStatusRequest
) -> oip.SystemSharedMemoryStatusResponse:
    return oip.SystemSharedMemoryStatusResponse()


async def _cuda_regions(
    call: GrpcCall, message: oip.CudaSharedMemoryStatusRequest
) -> oip.CudaSharedMemoryStatusResponse:
    return oip.CudaSharedMemoryStatusResponse()


class _NamesModel(Protocol):
    name: str
    version: str


def _card(call: GrpcCall, message: _NamesModel) -> Card:
    return call.front.card(message.name, call.front.service.cards(), message.version)


def _max_bytes(limits: IngressLimits) -> int:
    return limits.max_message_bytes(has_pixels=True)


_METHODS: Final = INFERENCE.methods_by_name
RPCS: Final = (
    Rpc(method=_METHODS["ModelInfer"], answer=infer, surface=Surface.GRPC_OIP, max_bytes=_max_bytes),
    Rpc(
        method=_METHODS["ModelStreamInfer"],
        answer=infer_in_stream,
        surface=Surface.GRPC_OIP,
        max_bytes=_max_bytes,
        refusal=_refusal,
    ),
    Rpc(method=_METHODS["ServerLive"], answer=_server_live),
    Rpc(method=_METHODS["ServerReady"], answer=_server_ready),
    Rpc(method=_METHODS["ModelReady"], answer=_model_ready),
    Rpc(method=_METHODS["ServerMetadata"], answer=_server_metadata),
    Rpc(method=_METHODS["ModelMetadata"], answer=_model_metadata),
    Rpc(method=_METHODS["ModelConfig"], answer=_model_config),
    Rpc(method=_METHODS["ModelStatistics"], answer=_model_statistics),
    Rpc(method=_METHODS["RepositoryIndex"], answer=_repository_index),
    Rpc(method=_METHODS["SystemSharedMemoryStatus"], answer=_system_regions),
    Rpc(method=_METHODS["CudaSharedMemoryStatus"], answer=_cuda_regions),
)
