"""Answers that fit a JSON schema: which token may come next.

By llguidance, the library that vLLM is set to use here as well. It builds its automata as it goes and counts its own
work, so that every schema is either accepted or refused within tens of milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest

_PARAM = "response_format"


class SchemaCompiler:
    """Checks schemas, and makes one ``SchemaMatcher`` per answer. Threads may share it."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        """``tokenizer`` is an ``llguidance.LLTokenizer`` of ``vocab_size`` tokens."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    @classmethod
    def of_model(cls, model_dir: Path, vocab_size: int) -> SchemaCompiler | None:
        """For the tokenizer of a model folder; None where llguidance is not installed."""
        try:
            import llguidance.hf
        except ImportError:
            return None
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
        return cls(llguidance.hf.from_tokenizer(tokenizer, max(vocab_size, len(tokenizer))), vocab_size)

    def check(self, schema: str) -> None:
        """Raises: InvalidRequest: no JSON schema, or one that asks for what cannot be kept to."""
        from llguidance import LLMatcher

        error = LLMatcher.validate_grammar(_grammar(schema), self._tokenizer)
        if error:
            raise InvalidRequest(f"the schema cannot be followed: {error.splitlines()[0][:200]}", param=_PARAM)

    def matcher(self, schema: str) -> SchemaMatcher:
        """Raises: InvalidRequest: see ``check``."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, _grammar(schema), log_level=0)
        if matcher.is_error():
            self.check(schema)
        return SchemaMatcher(matcher, self._vocab_size)


class SchemaMatcher:
    """Follows one answer."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next, shape (vocab_size,). The end of the text alone once the answer is complete.

        Raises: InvalidRequest: the schema turned out to need more work per token than is allowed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise too_complex()
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)

    def accept(self, token_id: int) -> None:
        """Move on by a token that was allowed."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)


def too_complex() -> InvalidRequest:
    """Found out while the answer was being written."""
    return InvalidRequest("the schema is too complex to follow; simplify response_format", param=_PARAM)


def _grammar(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        parsed = json.loads(schema)
        if isinstance(parsed, dict) and "x-guidance" in parsed:
            raise ValueError("x-guidance is not a keyword of JSON schemas")
        # No free white space: a model that likes it could fill its whole answer with it.
        grammar: str = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequest("the schema is not a JSON schema; correct response_format", param=_PARAM) from error
    return grammar
