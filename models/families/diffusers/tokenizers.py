"""Tokenizers of miniatures: a word for each letter, made in code."""

from __future__ import annotations

import string
from typing import Any

import transformers
from tokenizers.pre_tokenizers import ByteLevel


def make_tokenizer(kind: str) -> Any:
    """A small tokenizer of that class of transformers. Raises: ValueError: none is known."""
    makers = {
        "T5TokenizerFast": _t5,
        "CLIPTokenizer": _clip,
        "Qwen2Tokenizer": _qwen,
        "ByT5Tokenizer": transformers.ByT5Tokenizer,
    }
    if kind not in makers:
        raise ValueError(f"there is no miniature of {kind}")
    return makers[kind]()


def _t5() -> Any:
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -2.5) for letter in string.printable if letter.strip()]
    return transformers.T5TokenizerFast(  # type: ignore[attr-defined]  # loaded when asked for
        vocab=[*marks, *letters], extra_ids=0
    )


def _clip() -> Any:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(_numbered(words), [], model_max_length=77)


def _qwen() -> Any:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = _numbered([*sorted(ByteLevel.alphabet()), *marks])
    made = transformers.Qwen2Tokenizer(words, [], additional_special_tokens=marks[1:])
    made.chat_template = (
        "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


def _numbered(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(words)}
