"""What an engine refuses before any work is done, with the reason in the caller's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from models.families.texthawk2.tiling import image_tokens
from serving.errors import InvalidRequest, TooManyImages
from serving.replica.chat.base import EngineRequest


class Bounds(Protocol):
    """The bounds of an engine's options."""

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    @property
    def max_images(self) -> int:
        """Images per request."""
        ...

    @property
    def max_logprobs(self) -> int:
        """Alternatives per token."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestChecks:
    """Limits of a model and of its engine."""

    max_model_len: int
    max_images: int
    max_logprobs: int
    vocab_size: int
    image_token_id: int
    tokens_per_tile: int

    @classmethod
    def of_model(cls, config: Any, bounds: Bounds) -> RequestChecks:
        """``config`` is a ``TextHawk2Config``."""
        return cls(
            max_model_len=bounds.max_model_len,
            max_images=bounds.max_images,
            max_logprobs=bounds.max_logprobs,
            vocab_size=int(config.text_config.vocab_size),
            image_token_id=int(config.image_token_id),
            tokens_per_tile=int(config.tokens_per_tile),
        )

    def image_tokens(self, request: EngineRequest) -> int:
        """Tokens of all images of a request, begin and end not counted."""
        return sum(image_tokens(image.grid, self.tokens_per_tile) for image in request.images)

    def num_prompt_tokens(self, request: EngineRequest) -> int:
        """With images expanded."""
        return len(request.prompt_token_ids) + len(request.images) + self.image_tokens(request)

    def check(self, request: EngineRequest) -> None:
        """Raises: InvalidRequest, TooManyImages: the request cannot be run as it is."""
        if len(request.images) > self.max_images:
            raise TooManyImages(
                f"the request has {len(request.images)} images; limit is {self.max_images}", param="messages"
            )
        if request.prompt_token_ids.count(self.image_token_id) != len(request.images):
            raise InvalidRequest("the prompt does not have one place per image", param="messages")
        self._check_length(request)
        if request.logprobs is not None and not 0 <= request.logprobs <= self.max_logprobs:
            raise InvalidRequest(
                f"top_logprobs is {request.logprobs}; limit is {self.max_logprobs}", param="top_logprobs"
            )
        wrong = [token for token in request.logit_bias if not 0 <= token < self.vocab_size]
        if wrong:
            raise InvalidRequest(
                f"logit_bias names token {wrong[0]}; tokens are numbered 0 to {self.vocab_size - 1}", param="logit_bias"
            )

    def _check_length(self, request: EngineRequest) -> None:
        num_tokens = self.num_prompt_tokens(request)
        if not request.prompt_token_ids or request.max_tokens < 1:
            raise InvalidRequest("prompt and max_tokens must be at least one token", param="max_tokens")
        if num_tokens + request.max_tokens > self.max_model_len:
            raise InvalidRequest(
                f"prompt of {num_tokens} tokens and answer of up to {request.max_tokens} exceed the model's limit of "
                f"{self.max_model_len}; shorten the prompt, send smaller images or lower max_tokens",
                param="messages",
            )
