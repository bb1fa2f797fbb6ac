"""``vireo.v1.Vireo/Chat``: messages to a request, events to messages. The rules are those of HTTP (``rules``)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Final

from vireo_pb.vireo.v1 import vireo_pb2

from serving.delivery.stream.wire import ChatDelta, FinishReason, TokenLogprob
from serving.domain import Surface
from serving.errors import InvalidRequest
from serving.front.auth import LogprobRights
from serving.front.budget import budget_from_message
from serving.front.events import EventQueue
from serving.front.front import check_integer, check_model, check_number, clean
from serving.front.grpc.call import GrpcCall
from serving.front.grpc.messages import message_from_report
from serving.front.grpc.registration import VIREO
from serving.front.grpc.rpc import Rpc
from serving.front.http.json_body import load_object
from serving.limits import IngressLimits
from serving.tasks.chat.domain import ChatEnd, ChatRequest, Role, Sampling, joined
from serving.tasks.chat.rules import (
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    Prompt,
    check_end,
    check_logit_bias,
    check_may_bias,
    check_may_see_logprobs,
    check_stop,
    compact_schema,
)
from serving.telemetry.events import OK

_ROLES = {
    vireo_pb2.CHAT_ROLE_SYSTEM: Role.SYSTEM,
    vireo_pb2.CHAT_ROLE_USER: Role.USER,
    vireo_pb2.CHAT_ROLE_ASSISTANT: Role.ASSISTANT,
}
_REASONS = {
    FinishReason.STOP: vireo_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: vireo_pb2.FINISH_REASON_LENGTH,
}
_MAX_SPACING = 4
"""How much longer than its compact form a schema may be written."""


async def chat(call: GrpcCall, message: vireo_pb2.ChatRequest) -> AsyncGenerator[vireo_pb2.ChatResponse, None]:
    """``vireo.v1.Vireo/Chat``. A call that is cancelled, or whose deadline passes, frees what it holds at once."""
    chats = call.front.service.chats
    request = call.front.admit(await request_from_message(message, call), chats.chat_models(), call.visit)
    reasons = [FinishReason.STOP] * request.sampling.n
    async with EventQueue(partial(chats.chat, request)) as queue:
        while True:
            for event in joined(await queue.take()):
                if isinstance(event, ChatEnd):
                    call.visit.outcome = OK
                    yield message_from_end(event, request.model, reasons)
                    return
                reasons[event.index] = event.finish_reason or reasons[event.index]
                for response in messages_from_delta(event):
                    yield response


async def request_from_message(message: vireo_pb2.ChatRequest, call: GrpcCall) -> ChatRequest:
    """Return the request. Raises: ClientError."""
    limits, rights = call.front.limits, call.front.authenticator.logprob_rights(call.tenant)
    prompt = Prompt(limits)
    model = check_model(message.model or None)
    for index, turn in enumerate(message.messages):
        _read_turn(turn, f"messages[{index}]", prompt)
    return ChatRequest(
        request_id=call.request_id,
        surface=Surface.GRPC_CHAT,
        tenant=call.tenant,
        model=model,
        sampling=_sampling(message.sampling, limits, rights, prompt.num_images),
        budget=budget_from_message(message.vireo),
        deadline_s=call.deadline_s(),
        messages=await prompt.finish(),
    )


def _read_turn(turn: vireo_pb2.ChatMessage, where: str, prompt: Prompt) -> None:
    role = _ROLES.get(turn.role)
    if role is None:
        raise InvalidRequest(
            f"{where}.role is {turn.role}; it must be a value of the enumeration ChatRole", param=f"{where}.role"
        )
    prompt.begin(role, where)
    if not turn.parts:
        raise InvalidRequest(f"{where}.parts is empty; send at least one part", param=f"{where}.parts")
    for index, part in enumerate(turn.parts):
        _read_part(part, f"{where}.parts[{index}]", prompt)


def _read_part(part: vireo_pb2.ChatPart, where: str, prompt: Prompt) -> None:
    kind = part.WhichOneof("part")
    if kind == "text":
        prompt.text(part.text, where)
    elif kind == "image":
        prompt.image_bytes(part.image, where)
    elif kind == "image_url":
        prompt.image_url(part.image_url, where)
    else:
        raise InvalidRequest(f"{where} is empty; set text, image or image_url", param=where)


def _sampling(message: vireo_pb2.Sampling, limits: IngressLimits, rights: LogprobRights, num_images: int) -> Sampling:
    def given(name: str) -> bool:
        return message.HasField(name)  # type: ignore[arg-type]

    where = "sampling."
    if given("logprobs"):
        check_may_see_logprobs(rights, num_images, f"{where}logprobs")
        check_integer(message.logprobs, 0, MAX_TOP_LOGPROBS, f"{where}logprobs")
    if message.logit_bias:
        check_may_bias(rights, f"{where}logit_bias")
    sampling = Sampling(
        max_tokens=check_integer(message.max_tokens, 1, MAX_TOKENS, f"{where}max_tokens")
        if given("max_tokens")
        else None,
        min_tokens=check_integer(message.min_tokens, 0, MAX_TOKENS, f"{where}min_tokens"),
        ignore_eos=message.ignore_eos,
        temperature=check_number(message.temperature, 0.0, MAX_TEMPERATURE, f"{where}temperature")
        if given("temperature")
        else 1.0,
        top_p=check_number(message.top_p, 0.0, 1.0, f"{where}top_p", is_open_low=True) if given("top_p") else 1.0,
        stop=check_stop(message.stop, limits, f"{where}stop"),
        seed=check_integer(message.seed, 0, MAX_SEED, f"{where}seed") if given("seed") else None,
        n=check_integer(message.n, 1, limits.max_choices, f"{where}n") if given("n") else 1,
        json_schema=_schema(message.json_schema, limits, f"{where}json_schema") if given("json_schema") else None,
        logprobs=message.logprobs if given("logprobs") else None,
        logit_bias=check_logit_bias(message.logit_bias, limits, f"{where}logit_bias"),
    )
    check_end(sampling, where)
    return sampling


def _schema(text: str, limits: IngressLimits, param: str) -> str:
    max_chars = _MAX_SPACING * limits.max_schema_bytes
    if len(text) > max_chars:
        raise InvalidRequest(
            f"{param} has {len(text)} characters; the limit, spaces included, is {max_chars}", param=param
        )
    return compact_schema(load_object(text.encode(), limits.max_schema_bytes, what=param), limits, param)


def messages_from_delta(delta: ChatDelta) -> Iterator[vireo_pb2.ChatResponse]:
    """The message of a delta; none for one that only ends its choice, which ``message_from_end`` tells."""
    if delta.text or delta.num_tokens or delta.logprobs:
        yield vireo_pb2.ChatResponse(
            delta=vireo_pb2.ChatDelta(
                index=delta.index,
                text=clean(delta.text),
                num_tokens=delta.num_tokens,
                logprobs=[_logprob(entry) for entry in delta.logprobs],
            )
        )


def _logprob(entry: TokenLogprob) -> vireo_pb2.TokenLogProb:
    return vireo_pb2.TokenLogProb(
        chosen=vireo_pb2.LogProb(token=clean(entry.token), logprob=entry.logprob),
        top=[vireo_pb2.LogProb(token=clean(token), logprob=logprob) for token, logprob in entry.top],
    )


def message_from_end(end: ChatEnd, model: str, reasons: Sequence[FinishReason]) -> vireo_pb2.ChatResponse:
    """Return the last message. ``reasons``: why each choice ended, by its index."""
    return vireo_pb2.ChatResponse(
        end=vireo_pb2.ChatEnd(
            model=model,
            finish_reasons=[_REASONS[reason] for reason in reasons],
            usage=vireo_pb2.Usage(**asdict(end.usage)),
            vireo=message_from_report(end.report),
        )
    )


RPCS: Final = (
    Rpc(
        method=VIREO.methods_by_name["Chat"],
        answer=chat,
        surface=Surface.GRPC_CHAT,
        max_bytes=lambda limits: limits.max_message_bytes(has_pixels=False),
    ),
)
