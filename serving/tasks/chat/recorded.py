"""Recorded chats, OpenAI bodies one a line, answered again by an engine in this process: what the guard learns from.

They are read as the server reads them: same fields, same limits, same decoder. A body that it would refuse is refused
here, with its line. Pictures have to be in the body, since a file that is fetched later may be another one.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.contract import Prompts
from schedulers.guard.text import Asked
from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason
from serving.domain import Budget, ImagePart
from serving.errors import InvalidRequest
from serving.front.auth import LogprobRights
from serving.guard.fit import Benign
from serving.guard.purify import squeezed
from serving.limits import IngressLimits
from serving.media.limits import MediaLimits
from serving.media.prepare import Processor, prepare_encoded
from serving.replica.chat.base import ChatEngine, EngineDelta
from serving.tasks.chat.asked import asked_of
from serving.tasks.chat.body import call_from_document
from serving.tasks.chat.domain import ChatRequest, Message, TextPart

_LIMITS, _MEDIA = IngressLimits(), MediaLimits()
_ANY_LOGPROBS = LogprobRights(True, True)
"""Asked for or not, they are not made here."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One chat, ready for an engine."""

    asked: Asked
    request: EngineRequest


def bodies(path: Path, most: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, body) of the first ``most``. Raises: ValueError: a line that is no JSON object."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if most is not None and number > most:
                return
            if not line.strip():
                continue
            try:
                body = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
            if not isinstance(body, dict):
                raise ValueError(f"{path}, line {number} is no object; write one body a line")
            yield number, body


async def read_body(
    body: dict[str, Any], prompts: Prompts, process: Processor, *, most_tokens: int, context: int
) -> Recorded:
    """As the server would answer it. ``most_tokens``: of its answers; ``context``: of prompt and answer together.

    Raises: ClientError: the server would refuse it, or a picture is elsewhere.
    """
    call = await call_from_document(
        {**body, "n": 1},
        request_id="",
        tenant="",
        fallback=Budget(),
        limits=_LIMITS,
        logprobs=_ANY_LOGPROBS,
    )
    request = call.request
    images = [_image(part, process) for message in request.messages for part in message.parts if _is_image(part)]
    try:
        ids = prompts.build([(message.role.value, _parts(message)) for message in request.messages])
    except ValueError as error:
        raise InvalidRequest(str(error), param="messages") from None
    room = context - prompts.num_expanded(ids, [image.grid for image in images])
    most = min(most_tokens, room, request.sampling.max_tokens or most_tokens)
    return Recorded(
        asked_of(request.messages, is_structured=request.sampling.json_schema is not None),
        _engine_request(request, ids, images, max(1, most)),
    )


async def answered(engine: ChatEngine, recorded: Recorded) -> Benign:
    """What the engine answers to it, as the guard sees it. Raises: ServingError."""
    ids: list[int] = []
    ends: list[float] = []
    reason: FinishReason | None = None

    def hear(delta: EngineDelta) -> None:
        nonlocal reason
        ids.extend(delta.token_ids)
        ends.extend(delta.log_p_ends or ())
        reason = delta.finish_reason

    await engine.run(recorded.request._replace(tells_ends=True), hear)
    distances = [await engine.image_distance(image, squeezed(image)) for image in recorded.request.images[:1]]
    return Benign(
        asked=recorded.asked,
        token_ids=ids,
        log_p_ends=ends or None,
        is_ended=reason is FinishReason.STOP,
        squeeze=distances[0] if distances else None,
    )


def _is_image(part: object) -> bool:
    return isinstance(part, ImagePart)


def _image(part: Any, process: Processor) -> EngineImage:
    if part.encoded is None:
        raise InvalidRequest(
            f"the picture is at a URL; put the file itself into the body, as a data: URL ({part.param})",
            param=part.param,
        )
    prepared = prepare_encoded(part.encoded, _MEDIA, process)
    return EngineImage(secrets.token_hex(16), prepared.pixels, prepared.grid or (1, 1))


def _parts(message: Message) -> list[str | None]:
    return [part.text if isinstance(part, TextPart) else None for part in message.parts]


def _engine_request(request: ChatRequest, ids: list[int], images: list[EngineImage], max_tokens: int) -> EngineRequest:
    sampling = request.sampling
    return EngineRequest(
        request_id=secrets.token_hex(8),
        prompt_token_ids=tuple(ids),
        images=tuple(images),
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=sampling.stop,
        json_schema=sampling.json_schema,
        logprobs=None,
        logit_bias=sampling.logit_bias,
        cache_salt=secrets.token_hex(8),
        min_tokens=min(sampling.min_tokens, max_tokens),
        ignore_eos=sampling.ignore_eos,
    )
