"""What an engine is built for, and what it refuses before any work is done, with the reason in the caller's words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.contract import Prompts
from serving.config import StreamOptions
from serving.delivery.stream.wire import EngineRequest
from serving.errors import InvalidRequest, PromptTooLong, TooManyImages


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """What an engine is built for. ``max_logprobs``: alternatives per token that may be asked for."""

    model_id: str
    folder: Path
    device: Literal["cpu", "cuda"] = "cpu"
    max_model_len: int
    options: StreamOptions = field(default_factory=StreamOptions)
    max_logprobs: int = 20


@dataclass(frozen=True, slots=True)
class RequestChecks:
    """Limits of a model and of its engine."""

    setup: EngineSetup
    prompts: Prompts
    vocab_size: int

    def image_tokens(self, request: EngineRequest) -> int:
        """Tokens of all images of a request, begin and end not counted."""
        return sum(self.prompts.image_tokens(image.grid) for image in request.images)

    def num_tokens(self, request: EngineRequest) -> int:
        """Of a prompt with images expanded, and of the longest answer."""
        grids = [image.grid for image in request.images]
        return self.prompts.num_expanded(request.prompt_token_ids, grids) + request.max_tokens

    def check(self, request: EngineRequest) -> None:
        """Raises: InvalidRequest, TooManyImages: the request cannot be run as it is."""
        max_images, max_logprobs = self.setup.options.max_images, self.setup.max_logprobs
        if len(request.images) > max_images:
            raise TooManyImages(
                f"the request has {len(request.images)} images; limit is {max_images}", param="messages"
            )
        if request.prompt_token_ids.count(self.prompts.image_id) != len(request.images):
            raise InvalidRequest("the prompt does not have one place per image", param="messages")
        self._check_length(request)
        if request.logprobs is not None and not 0 <= request.logprobs <= max_logprobs:
            raise InvalidRequest(f"top_logprobs is {request.logprobs}; limit is {max_logprobs}", param="top_logprobs")
        wrong = [token for token in request.logit_bias if not 0 <= token < self.vocab_size]
        if wrong:
            raise InvalidRequest(
                f"logit_bias names token {wrong[0]}; tokens are numbered 0 to {self.vocab_size - 1}", param="logit_bias"
            )

    def _check_length(self, request: EngineRequest) -> None:
        max_model_len = self.setup.max_model_len
        if not request.prompt_token_ids or request.max_tokens < 1:
            raise InvalidRequest("prompt and max_tokens must be at least one token", param="max_tokens")
        num_tokens = self.num_tokens(request)
        if num_tokens > max_model_len:
            raise PromptTooLong.of_chat(max_model_len, num_tokens - request.max_tokens, request.max_tokens)
