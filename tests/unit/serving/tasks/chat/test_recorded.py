"""Recorded chats are read as the server reads them, and answered as it answers them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.families.texthawk2.image_processor import cut_tiles
from schedulers.guard.text import Asked
from serving.delivery.stream.wire import FinishReason
from serving.domain import Budget, ImagePart
from serving.errors import ClientError, InvalidRequest
from serving.front.auth import LogprobRights
from serving.limits import IngressLimits
from serving.replica.chat.base import EngineDelta
from serving.replica.chat.fake_engine import BytePrompts
from serving.tasks.chat.asked import asked_of
from serving.tasks.chat.body import call_from_document
from serving.tasks.chat.domain import Message, Role, TextPart
from serving.tasks.chat.recorded import Recorded, answered, bodies, read_body
from serving.tasks.chat.turns import asking
from tests.benchmarks.guard import evidence

PROMPTS = BytePrompts(16)


def picture(kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", (224, 224), "navy").save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def body(*urls: str, question: str = "Read the word.", **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    said = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return {"model": "m", "messages": said, "temperature": 0, **fields}


async def recorded(document: dict[str, Any], most_tokens: int = 512, context: int = 4096) -> Recorded:
    return await read_body(document, PROMPTS, cut_tiles, most_tokens=most_tokens, context=context)


async def test_a_body_is_what_an_engine_gets() -> None:
    read = await recorded(body(picture(), max_tokens=40, stop=["."], seed=3))
    (image,) = read.request.images
    assert (image.tiles.shape, image.grid) == ((1, 224, 224, 3), (1, 1))
    assert (read.request.max_tokens, read.request.stop, read.request.seed) == (40, (".",), 3)
    assert read.asked == Asked("Read the word.", num_images=1, num_turns=1, is_structured=False)


async def test_the_text_is_that_of_the_system_and_of_the_last_question() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First."},
        {"role": "assistant", "content": "Told."},
        {"role": "user", "content": "Second."},
    ]
    read = await recorded({"model": "m", "messages": turns, "response_format": {"type": "json_object"}})
    assert read.asked == Asked("Be brief.\nSecond.", num_images=0, num_turns=3, is_structured=True)


async def test_a_gateway_says_the_same_of_a_body_as_the_calibration() -> None:
    """Else bounds are of other requests than those that they are held against."""
    look = {"type": "image_url", "image_url": {"url": picture()}}
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [look, {"type": "text", "text": "First."}]},
        {"role": "assistant", "content": "Told."},
        {"role": "user", "content": [look, {"type": "text", "text": "Read"}, {"type": "text", "text": "this."}]},
    ]
    schema = {"name": "word", "schema": {"type": "object"}}
    document = {"model": "m", "messages": turns, "response_format": {"type": "json_schema", "json_schema": schema}}
    call = await call_from_document(
        document,
        request_id="",
        tenant="",
        fallback=Budget(),
        limits=IngressLimits(),
        logprobs=LogprobRights(True, True),
    )
    calibrated = (await recorded(document)).asked
    assert asking(call.request, 512).asked == calibrated
    assert calibrated == Asked("Be brief.\nBe kind.\nRead\nthis.", num_images=2, num_turns=3, is_structured=True)


def test_a_trace_says_as_much_as_its_request() -> None:
    """The benchmark, which has no bodies, counts turns and pictures alike."""
    said = (("user", "First."), ("assistant", "Told."), ("user", "Second."))
    trace: Any = SimpleNamespace(turns=said, prompt_ids=(7, 1, 7, 2))
    image = ImagePart(encoded=b"")
    messages = [Message(Role(role), (*[image] * (role == "user"), TextPart(text))) for role, text in said]
    assert evidence.asked_of(trace, image_id=7) == asked_of(messages, is_structured=False)


@pytest.mark.parametrize(("asked", "context", "allowed"), [(None, 4096, 512), (7, 4096, 7), (600, 4096, 512)])
async def test_an_answer_is_no_longer_than_the_server_allows(asked: int | None, context: int, allowed: int) -> None:
    fields: dict[str, Any] = {} if asked is None else {"max_tokens": asked}
    assert (await recorded(body(**fields), context=context)).request.max_tokens == allowed


async def test_an_answer_fits_into_the_context() -> None:
    read = await recorded(body(), context=64)
    assert read.request.max_tokens == 64 - PROMPTS.num_expanded(read.request.prompt_token_ids, [])


async def test_what_the_server_refuses_is_refused() -> None:
    with pytest.raises(ClientError, match="temperature"):
        await recorded(body(temperature=9))


async def test_a_picture_at_a_url_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidRequest, match="put the file itself into the body"):
        await recorded(body("https://example.com/a.png"))


def test_lines_are_counted_and_blank_ones_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(body())}\n\n{json.dumps(body(question='Two.'))}\n")
    assert [line for line, _ in bodies(file)] == [1, 3]
    assert [line for line, _ in bodies(file, 2)] == [1]


@pytest.mark.parametrize(("text", "why"), [("{", "line 2 is no JSON"), ("[]", "line 2 is no object")])
def test_a_line_that_is_no_body_is_named(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(body())}\n{text}\n")
    with pytest.raises(ValueError, match=why):
        list(bodies(file))


class Telling:
    """An engine that says what it was given to say, and the end's log-probabilities where they are asked for."""

    def __init__(self, reason: FinishReason) -> None:
        self._reason = reason
        self.tells_ends: bool | None = None

    async def run(self, request: Any, say: Any) -> None:
        self.tells_ends = request.tells_ends
        for token in (5, 6, 2):
            say(EngineDelta("x", (token,), self._reason if token == 2 else None, (), 0, 9, (-1.0 * token,)))

    async def image_distance(self, one: Any, other: Any) -> float:
        return float(np.abs(one.tiles.astype(int) - other.tiles).mean())


@pytest.mark.parametrize("reason", list(FinishReason))
async def test_an_answer_is_kept_as_the_guard_sees_it(reason: FinishReason) -> None:
    engine: Any = Telling(reason)
    told = await answered(engine, await recorded(body(picture())))
    assert engine.tells_ends
    assert (list(told.token_ids), list(told.log_p_ends or ())) == ([5, 6, 2], [-5.0, -6.0, -2.0])
    assert told.is_ended is (reason is FinishReason.STOP)
    assert told.squeeze is not None
    assert told.squeeze > 0


async def test_an_answer_about_no_picture_has_no_distance() -> None:
    engine: Any = Telling(FinishReason.STOP)
    assert (await answered(engine, await recorded(body()))).squeeze is None
