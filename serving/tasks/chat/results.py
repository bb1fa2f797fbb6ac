"""What is kept of a chat, and under which names: its answer in Redis, its images and prefixes on replicas."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import msgspec

from serving.delivery.stream.generation import StoredChat
from serving.service import Card
from serving.stores.results import Codec
from serving.stores.sealed import ResultKey
from serving.tasks.chat.domain import Sampling

_FORM = "chat-1"
"""Changes with any change of how a prompt is put together."""
MAX_TEXT_CHARS = 200_000
"""Answers longer than this are not kept."""


def result_key(
    tenant: str,
    card: Card,
    prompt_token_ids: Sequence[int],
    images: Sequence[bytes],
    sampling: Sampling,
    max_tokens: int,
) -> ResultKey | None:
    """What the answer of a request depends on; None if it may differ from time to time, or shows probabilities.
    ``images``: their ``identity``, in order."""
    if not sampling.is_deterministic or sampling.logprobs is not None:
        return None
    return ResultKey(
        tenant=tenant,
        model=card.id,
        checkpoint_sha256=card.checkpoint_sha256,
        operating_point=_canonical(sampling, max_tokens),
        processor_version=f"{_FORM}-{card.prepare_version}",
        content_sha256=_content(prompt_token_ids, images),
    )


def _canonical(sampling: Sampling, max_tokens: int) -> str:
    """Everything that steers sampling, in one form. ``max_tokens`` is the cap in force, not the one asked for."""
    fields = (
        max_tokens,
        sampling.min_tokens,
        sampling.ignore_eos,
        sampling.temperature,
        sampling.top_p,
        sampling.stop,
        sampling.seed,
        sampling.n,
        sampling.json_schema,
        sorted(sampling.logit_bias.items()),
    )
    return msgspec.json.encode(fields).decode()


def _content(prompt_token_ids: Sequence[int], images: Sequence[bytes]) -> bytes:
    """The prompt as the model reads it. Every image is one token in it, so that places and order count."""
    digest = hashlib.sha256(len(images).to_bytes(8, "big"))
    for image in images:
        digest.update(hashlib.sha256(image).digest())
    digest.update(b"".join(token.to_bytes(4, "big") for token in prompt_token_ids))
    return digest.digest()


def _encode(answer: StoredChat) -> dict[str, Any] | None:
    is_short = sum(len(choice.text) for choice in answer.choices) <= MAX_TEXT_CHARS
    return {"chat": msgspec.to_builtins(answer)} if is_short else None


def _decode(payload: dict[str, Any]) -> StoredChat | None:
    try:
        return msgspec.convert(payload.get("chat"), StoredChat)
    except msgspec.ValidationError:  # of another version
        return None


CODEC = Codec(_encode, _decode)


_KEY_BYTES = 16


class TenantKeys:
    """Derives the names. Holds a secret."""

    def __init__(self, secret: bytes) -> None:
        self._salt_secret = hmac.digest(secret, b"vireo chat cache salt", "sha256")
        self._image_secret = hmac.digest(secret, b"vireo chat image key", "sha256")

    def cache_salt(self, tenant: str) -> str:
        """Hex; parts the prefix caches of tenants."""
        return _name(self._salt_secret, tenant.encode())

    def image_key(self, tenant: str, model: str, identity: bytes) -> str:
        """Hex; the same for the same pixels and tiles, tenant and model. ``identity``: of a ``PreparedImage``."""
        return _name(self._image_secret, tenant.encode(), model.encode(), identity)


def _name(secret: bytes, *fields: bytes) -> str:
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for field in fields:
        mac.update(len(field).to_bytes(8, "big") + field)
    return mac.digest()[:_KEY_BYTES].hex()
