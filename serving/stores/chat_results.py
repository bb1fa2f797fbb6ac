"""Exact results and quotas of chat, on the same store, script and round trip as those of classification."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from serving.service import ChatModelCard
from serving.stores.buckets import Reservation
from serving.stores.result_cache import ResultKey
from serving.stores.results import ResultName, ResultStore
from serving.tasks.chat.domain import FinishReason, Sampling

_FORM = "chat-1"
"""Changes with any change of how a prompt is put together or an image prepared."""
MAX_TEXT_CHARS = 200_000
"""Answers longer than this are not kept."""


class StoredChoice(NamedTuple):
    """One complete answer."""

    text: str
    num_tokens: int
    finish_reason: FinishReason


class StoredChat(NamedTuple):
    """What was answered to a request, and how long its prompt was."""

    choices: tuple[StoredChoice, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ChatLookup:
    """``found`` is None for a miss; then ``reservation`` is what was reserved, if the tenant has a quota."""

    found: StoredChat | None
    reservation: Reservation | None


class ChatResults:
    """The chat service's view of Redis. Use from one event loop."""

    def __init__(self, results: ResultStore) -> None:
        self._results = results

    def key(
        self,
        tenant: str,
        card: ChatModelCard,
        prompt_token_ids: Sequence[int],
        image_sha256: Sequence[bytes],
        sampling: Sampling,
        max_tokens: int,
    ) -> ResultName | None:
        """Name the answer of a request; None if it may differ from time to time, or shows probabilities."""
        if not sampling.is_deterministic or sampling.logprobs is not None:
            return None
        return self._results.name(
            ResultKey(
                tenant=tenant,
                model=card.id,
                checkpoint_sha256=card.checkpoint_sha256,
                operating_point=_canonical(sampling, max_tokens),
                processor_version=_FORM,
                content_sha256=_content(prompt_token_ids, image_sha256),
            )
        )

    async def look_up(self, name: ResultName | None, tenant: str, joules: float, seconds: float) -> ChatLookup:
        """Look for the answer, and reserve if it is missing, in one round trip.

        Raises:
            QuotaExceeded: the tenant's buckets do not hold that much; nothing was reserved.
        """
        payload, reservation = await self._results.look_up_payload(name, tenant, joules, seconds)
        return ChatLookup(_opened(payload), reservation)

    def check_account(self, tenant: str) -> None:
        """Raises: QuotaExceeded: see ``ResultStore.check_account``."""
        self._results.check_account(tenant)

    def settle(self, reservation: Reservation | None, joules: float, seconds: float) -> None:
        """Charge what was really used. Once per reservation."""
        self._results.settle_reservation(reservation, joules, seconds)

    def put(self, name: ResultName, answer: StoredChat) -> None:
        """Keep a complete answer."""
        if sum(len(choice.text) for choice in answer.choices) <= MAX_TEXT_CHARS:
            choices = [[choice.text, choice.num_tokens, choice.finish_reason.value] for choice in answer.choices]
            self._results.put_payload(name, {"choices": choices, "prompt_tokens": answer.prompt_tokens})


def _canonical(sampling: Sampling, max_tokens: int) -> str:
    """Everything that steers sampling, in one form. ``max_tokens`` is the cap in force, not the one asked for."""
    fields = (
        max_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.stop,
        sampling.seed,
        sampling.n,
        sampling.json_schema,
        sorted(sampling.logit_bias.items()),
    )
    return msgspec.json.encode(fields).decode()


def _content(prompt_token_ids: Sequence[int], image_sha256: Sequence[bytes]) -> bytes:
    """The prompt as the model reads it. Every image is one token in it, so that places and order count."""
    digest = hashlib.sha256(len(image_sha256).to_bytes(8, "big"))
    for image in image_sha256:
        digest.update(hashlib.sha256(image).digest())
    digest.update(b"".join(token.to_bytes(4, "big") for token in prompt_token_ids))
    return digest.digest()


def _opened(payload: dict[str, Any] | None) -> StoredChat | None:
    match payload:
        case {"choices": [*choices], "prompt_tokens": int(prompt_tokens)}:
            return StoredChat(tuple(_choice(choice) for choice in choices), prompt_tokens)
    return None


def _choice(fields: list[Any]) -> StoredChoice:
    text, num_tokens, reason = fields  # the MAC says that we wrote it
    return StoredChoice(text, num_tokens, FinishReason(reason))
