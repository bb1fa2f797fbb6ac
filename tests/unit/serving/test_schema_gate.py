"""Schemas are compiled in a process with limits before any engine compiles them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.families.texthawk2.tokenizer import build_nano_tokenizer
from serving.confined import Confined
from serving.errors import BackendError, InvalidRequest
from serving.replica.chat.schemas import SchemaGate

LARGE = {"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_nano_tokenizer("图").save_pretrained(folder)
    return folder


@pytest.fixture
def gate(model_dir: Path) -> Iterator[SchemaGate]:
    made = SchemaGate(model_dir, 300)
    yield made
    made.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    seen: list[bytes] = []
    call = Confined.call

    async def counting(self: Confined, *request: bytes) -> bytearray:
        seen.append(b"".join(request))
        return await call(self, *request)

    monkeypatch.setattr(Confined, "call", counting)
    return seen


async def test_good_schema_is_compiled_once(gate: SchemaGate, calls: list[bytes]) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"enum": ["ab", "é"]}}})
    await asyncio.gather(*(gate.check(schema) for _ in range(3)))
    await gate.check(schema)
    assert calls == [schema.encode()]


async def test_bad_schema_is_refused_with_its_reason_and_compiled_once(gate: SchemaGate, calls: list[bytes]) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"cannot be followed: .*nonsense") as caught:
            await gate.check('{"type": "nonsense"}')
        assert caught.value.param == "response_format"
    assert len(calls) == 1


async def test_schema_that_takes_too_much_memory_is_refused_and_the_next_is_compiled(model_dir: Path) -> None:
    gate = SchemaGate(model_dir, 300, memory_bytes=64 << 20, timeout_s=60)
    with pytest.raises(InvalidRequest, match="more memory to compile"):
        await gate.check(json.dumps(LARGE))
    await gate.check('{"type": "object"}')
    gate.close()


async def test_schema_that_takes_too_long_is_refused_and_the_next_is_compiled(model_dir: Path) -> None:
    gate = SchemaGate(model_dir, 300, memory_bytes=4 << 30, timeout_s=0.2)
    with pytest.raises(InvalidRequest, match="more time to compile"):
        await gate.check(json.dumps(LARGE))
    gate.close()


async def test_step_of_an_answer_that_takes_too_much_is_found_too(model_dir: Path) -> None:
    """Its automaton has a state for each remainder; no compiler minds, the first digit does."""
    gate = SchemaGate(model_dir, 300, memory_bytes=64 << 20, timeout_s=60)
    with pytest.raises(InvalidRequest, match="more memory to compile"):
        await gate.check('{"type": "integer", "multipleOf": 1000003}')
    gate.close()


async def test_failure_of_the_process_is_no_verdict(
    gate: SchemaGate, calls: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: Confined, *request: bytes) -> bytearray:
        raise BackendError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Confined, "call", fails)
        with pytest.raises(BackendError):
            await gate.check('{"type": "object"}')
    await gate.check('{"type": "object"}')
    assert len(calls) == 1


async def test_caller_that_leaves_takes_no_verdict_away(gate: SchemaGate, calls: list[bytes]) -> None:
    first = asyncio.create_task(gate.check('{"type": "object"}'))
    second = asyncio.create_task(gate.check('{"type": "object"}'))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert len(calls) == 1
