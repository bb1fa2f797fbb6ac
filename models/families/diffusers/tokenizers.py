"""Tokenizers of miniatures: a word for each letter, made in code."""

from __future__ import annotations

import string
from typing import Any

import transformers


def make_tokenizer(kind: str) -> Any:
    """A small tokenizer of that class of transformers. Raises: ValueError: none is known."""
    makers = {"T5TokenizerFast": _t5}
    if kind not in makers:
        raise ValueError(f"there is no miniature of {kind}")
    return makers[kind]()


def _t5() -> Any:
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -2.5) for letter in string.printable if letter.strip()]
    return transformers.T5TokenizerFast(  # type: ignore[attr-defined]  # loaded when asked for
        vocab=[*marks, *letters], extra_ids=0
    )
