"""Answers that fit a JSON schema: which token may come next.

By llguidance, the library that vLLM is set to use here as well. It counts some of its work and not all of it: a schema
is compiled in a process with a memory and a time limit first (``SchemaGate``), and by an engine only if that went well.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.confined import Confined, Limit, LimitReached
from serving.errors import InvalidRequest

_PARAM = "response_format"
_MAX_VERDICTS = 1024
_NUM_TRIED_TOKENS = 8


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


class SchemaGate:
    """Compiles each schema once in a process of its own, before any engine does. One event loop.

    A schema may take ``memory_bytes`` more than the process with the tokenizer does, and ``timeout_s``. Verdicts are
    kept, the last ``_MAX_VERDICTS`` of them.
    """

    def __init__(
        self, model_dir: Path, vocab_size: int, *, memory_bytes: int = 256 << 20, timeout_s: float = 5.0
    ) -> None:
        self._process = Confined(
            "serving.replica.chat.schemas:make_checker",
            json.dumps([str(model_dir), vocab_size]),
            memory_bytes=memory_bytes,
            timeout_s=timeout_s,
            max_waiting=64,
        )
        self._verdicts: OrderedDict[str, asyncio.Task[str]] = OrderedDict()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    async def check(self, schema: str) -> None:
        """Raises: InvalidRequest: no JSON schema, one that cannot be kept to, or one that takes too much."""
        verdict = self._verdicts.get(schema)
        if verdict is None:
            verdict = self._verdicts[schema] = asyncio.create_task(self._compile(schema))
            if len(self._verdicts) > _MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(schema)
        try:
            found = await asyncio.shield(verdict)
        except BaseException:
            if verdict.done() and self._verdicts.get(schema) is verdict:
                del self._verdicts[schema]  # not a word about the schema
            raise
        if found:
            raise InvalidRequest(found, param=_PARAM)

    async def _compile(self, schema: str) -> str:
        try:
            return (await self._process.call(schema.encode())).decode()
        except LimitReached as error:
            what = "memory" if error.limit is Limit.MEMORY else "time"
            return f"the schema takes more {what} to compile than it may; simplify response_format"


def make_checker(argument: str) -> Callable[[bytearray], bytes]:
    """Return what the process of a ``SchemaGate`` does: compile a schema and begin an answer; the error, if any.

    The tokenizer is read without transformers, whose import takes seconds.
    """
    from llguidance import LLTokenizer
    from tokenizers import Tokenizer

    folder, vocab_size = json.loads(argument)
    file = Path(folder) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    settings = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
    size, end = max(vocab_size, tokenizer.get_vocab_size()), tokenizer.token_to_id(settings["eos_token"])
    compiler = SchemaCompiler(LLTokenizer(file.read_text(encoding="utf-8"), size, end), vocab_size)

    def check(schema: bytearray) -> bytes:
        try:
            matcher = compiler.matcher(schema.decode())
            for _ in range(_NUM_TRIED_TOKENS):
                allowed = np.flatnonzero(matcher.allowed())
                if not len(allowed):
                    break
                matcher.accept(int(allowed[-1]))
        except InvalidRequest as error:
            return error.message.encode()
        return b""

    return check


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
