"""Prompts counted in tokens, by a gateway before a job is queued as by the runner that makes it. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from models.contract import SettingError

FIELDS = ("prompt", "negative_prompt")
"""Of a request."""


class TooManyTokens(SettingError):
    """A prompt that is longer than the model reads."""


def check_prompts(request: Any, count: Callable[[str], int], limit: int) -> None:
    """Pass a request whose prompts have no more than ``limit`` tokens. Raises: TooManyTokens."""
    for field in FIELDS:
        if (tokens := count(getattr(request, field, ""))) > limit:
            raise TooManyTokens(field, f"{field} has {tokens} tokens; limit is {limit}; shorten it")


class PromptCheck(NamedTuple):
    """What ``Family.parts["prompt_check"]`` gives for a variant with weights: the folder of the tokenizer that counts,
    and how many tokens reach the networks."""

    folder: Path
    limit: int

    def load(self) -> Callable[[Any], None] | None:
        """A check of requests that raises TooManyTokens; None where the tokenizer is kept in another form than
        ``tokenizer.json``, so that only what runs the model can count."""
        from tokenizers import Tokenizer

        file = self.folder / "tokenizer.json"
        if not file.is_file():
            return None
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return lambda request: check_prompts(request, lambda text: len(tokenizer.encode(text).ids), self.limit)
