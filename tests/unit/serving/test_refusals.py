"""What a family refuses, as clients hear it."""

from __future__ import annotations

import pytest

from models.contract import SettingError
from models.prompt_tokens import TooManyTokens
from models.registry import find
from serving.errors import InvalidRequest, PromptTooLong, UnsupportedVideo
from serving.refusals import refused

PICTURES, CLIPS = "dit-moe-nano", "vdit-nano"


@pytest.mark.parametrize(
    ("model", "error", "kind", "param"),
    [
        (PICTURES, SettingError("prompt", "no such word"), InvalidRequest, "prompt"),
        (PICTURES, TooManyTokens("prompt", "too long"), PromptTooLong, "prompt"),
        (CLIPS, SettingError("num_frames", "too many"), UnsupportedVideo, "num_frames"),
        (CLIPS, TooManyTokens("negative_prompt", "too long"), PromptTooLong, "negative_prompt"),
        (CLIPS, SettingError("picture", "none"), UnsupportedVideo, "input_reference"),
    ],
)
def test_kind_is_by_what_was_wrong_and_not_by_the_field_alone(
    model: str, error: SettingError, kind: type[InvalidRequest], param: str
) -> None:
    _, variant = find(model)
    with pytest.raises(kind) as raised, refused(variant.io):
        raise error
    assert (type(raised.value), raised.value.param, str(raised.value)) == (kind, param, str(error))
