"""Tokens counted without torch are those that the model's own tokenizer counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.contract import SettingError
from models.families.diffusers.tokenizers import make_tokenizer
from models.io import ClipRequest, ImageRequest
from models.prompt_tokens import PromptCheck
from models.registry import find

TEXTS = ("", "a red ball", "Ein Bär läuft, \u6c34 and  two   gaps\n", "word " * 100)


@pytest.mark.parametrize("kind", ["T5TokenizerFast", "CLIPTokenizer", "Qwen2Tokenizer"])
def test_count_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(kind)
    tokenizer(["a", "longer"], padding=True, truncation=True, max_length=5)  # which a fast tokenizer remembers
    tokenizer.save_pretrained(tmp_path)
    for text in TEXTS:
        tokens = len(tokenizer(text).input_ids)
        exact, less = PromptCheck(tmp_path, tokens).load(), PromptCheck(tmp_path, tokens - 1).load()
        assert exact is not None
        assert less is not None
        exact(ImageRequest(width=64, height=64, prompt=text))
        if text:
            with pytest.raises(SettingError, match=f"prompt has {tokens} tokens; limit is {tokens - 1}"):
                less(ImageRequest(width=64, height=64, prompt=text))


def test_negative_prompt_counts_alike() -> None:
    family, variant = find("vdit-nano")
    check = family.part("prompt_check")(variant).load()
    check(ClipRequest(prompt="red " * 23))
    with pytest.raises(SettingError, match="25 tokens; limit is 24") as caught:
        check(ClipRequest(prompt="red", negative_prompt="red " * 24))
    assert caught.value.name == "negative_prompt"


def test_tokenizer_in_another_form_is_left_to_what_runs_the_model(tmp_path: Path) -> None:
    assert PromptCheck(tmp_path, 4).load() is None
