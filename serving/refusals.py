"""What a family refuses, as an error of the request: the same whether a gateway finds it out or a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from models.contract import Family, SettingError, Variant
from models.io import ClipIO
from models.prompt_tokens import PromptCheck, TooManyTokens
from serving.errors import InvalidRequest, PromptTooLong, UnsupportedVideo

FIRST_FRAME: Final = "input_reference"
"""What clients call the picture of a clip."""


@contextmanager
def refused(io: Any) -> Iterator[None]:
    """Raises: PromptTooLong; UnsupportedVideo: of a model that makes clips; InvalidRequest: of any other."""
    try:
        yield
    except SettingError as error:
        other = UnsupportedVideo if isinstance(io, ClipIO) else InvalidRequest
        kind = PromptTooLong if isinstance(error, TooManyTokens) else other
        raise kind(str(error), param=FIRST_FRAME if error.name == "picture" else error.name) from None


def prompt_check(family: Family, variant: Variant) -> Callable[[Any], None]:
    """Of a served model: raises ``TooManyTokens`` for prompts of too many tokens. One that says nothing where only the
    replica can count."""
    if variant.weights is not None and "prompt_check" in family.parts:
        made: PromptCheck = family.part("prompt_check")(variant)
        return made.load() or uncounted
    return uncounted


def uncounted(request: Any) -> None:
    """Pass any prompts."""
