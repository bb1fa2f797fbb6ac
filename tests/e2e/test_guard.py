"""A picture that keeps a model from ending, over HTTP and gRPC: capped, with the reason; an ordinary one is left alone.

The picture was crafted with the weights of the model that is served (special-tail of docs/attacks.md; no pixel
is changed by more than 8 grey levels). None of 24 changed copies of it kept the model from ending. Of a delayed-eos
picture, 16 of 24 did: the guard would often miss that one. What benign answers are like is made up here, as short as
this model's are: how often the guard is right is measured elsewhere (``make bench-guard``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openai
import pytest

from models.identity import checkpoint_sha256
from schedulers.guard.calibration import FILE_NAME
from schedulers.guard.text import Asked
from serving.guard.fit import Benign, fit
from tests.e2e.chats import example, grpc_answer, grpc_call, grpc_request, image_part
from tests.e2e.surfaces import grpc_failure, opened
from tests.support.chat_system import CHAT_MODEL
from tests.support.system import ROOT, System, running_system

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CRAFTED = ROOT / "tests/data/guard/special-tail.png"
QUESTION = "Read the word."
ORDINARY, ORDINARY_QUESTION = example("red-square.png"), "Where is the red square?"
MAX_TOKENS, LONGEST_BENIGN = 200, 14
KEYS = {name: f"{name}-key-7d21f0aa" for name in ("acme", "rival", "bystander", "observed", "unguarded")}


@pytest.fixture(scope="module")
def guarded(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("guarded")
    for file in trained_checkpoint.iterdir():
        if file.name != FILE_NAME:
            (folder / file.name).symlink_to(file)
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, LONGEST_BENIGN + 1, 1000)
    answers = [Benign(asked=Asked(QUESTION, 1), token_ids=range(length)) for length in lengths]
    calibration = fit(answers, model=CHAT_MODEL, checkpoint_sha256=checkpoint_sha256(folder))
    (folder / FILE_NAME).write_text(json.dumps(calibration.to_plain()))
    modes = {"observed": {"guard": "observe"}, "unguarded": {"guard": "off", "allow_logprobs": True}}
    tenants = [
        {"name": name, "api_key_sha256": [hashlib.sha256(key.encode()).hexdigest()], **modes.get(name, {})}
        for name, key in KEYS.items()
    ]
    # The engine on which the picture was crafted: on another one, rounding decides where an answer ends.
    models = [{"id": CHAT_MODEL, "checkpoint_dir": str(folder), "options": {"engine": "torch"}}]
    with running_system("gateway.default_deadline_s=120", models=models, tenants=tenants) as system:
        yield system


def client(system: System, tenant: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{system.http_url}/v1", api_key=KEYS[tenant], max_retries=0, timeout=120)


def ask(system: System, tenant: str, picture: Path = CRAFTED, question: str = QUESTION, **fields: Any) -> Any:
    """The whole answer, as a dictionary."""
    content = [image_part(picture.read_bytes()), {"type": "text", "text": question}]
    fields = {"model": CHAT_MODEL, "temperature": 0, "max_tokens": MAX_TOKENS, **fields}
    with client(system, tenant) as asking:
        return asking.chat.completions.create(messages=[{"role": "user", "content": content}], **fields).model_dump()


def streamed(system: System, tenant: str) -> list[Any]:
    content = [image_part(CRAFTED.read_bytes()), {"type": "text", "text": QUESTION}]
    with client(system, tenant) as asking:
        chunks = asking.chat.completions.create(
            model=CHAT_MODEL,
            temperature=0,
            max_tokens=MAX_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            messages=[{"role": "user", "content": content}],
        )
        return [chunk.model_dump() for chunk in chunks]


@pytest.fixture(scope="module")
def caught(guarded: System) -> Any:
    """The first answer about the picture, of a tenant that is guarded."""
    return ask(guarded, "acme")


def test_without_a_guard_the_picture_keeps_the_model_from_ending(guarded: System) -> None:
    answer = ask(guarded, "unguarded")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == MAX_TOKENS
    assert answer["vireo"]["guard"] == {}


def test_crafted_picture_is_capped_and_the_answer_says_why(caught: Any) -> None:
    guard = caught["vireo"]["guard"]
    assert guard["action"] == "capped", guard
    assert caught["choices"][0]["finish_reason"] == "length"
    assert caught["usage"]["completion_tokens"] < MAX_TOKENS // 2
    assert "confirmed" in guard["reasons"], "whatever first made it a suspect"
    assert guard["score"] >= 0.99
    assert caught["vireo"]["degraded"] == []


def test_it_is_known_again_on_every_surface_and_for_every_tenant(guarded: System, caught: Any) -> None:
    with opened(guarded, {"authorization": f"Bearer {KEYS['rival']}"}) as door:
        answer = grpc_answer(
            grpc_call(door, grpc_request(QUESTION, CRAFTED.read_bytes(), temperature=0, max_tokens=MAX_TOKENS))
        )
    assert answer.num_tokens <= LONGEST_BENIGN
    guard = answer.end.vireo.guard
    assert (guard.action, guard.reasons[0], guard.score) == ("capped", "replay", 1.0)
    *_, last = streamed(guarded, "acme")
    assert (last["vireo"]["guard"]["action"], last["vireo"]["guard"]["reasons"][0]) == ("capped", "replay")
    assert last["usage"]["completion_tokens"] <= LONGEST_BENIGN
    assert last["vireo"]["cache"] == "miss", "what was capped is in no cache"


def test_command_line_says_that_the_guard_ended_it(guarded: System, caught: Any) -> None:
    run = guarded.command(
        "chat", QUESTION, "--image", str(CRAFTED), "--url", guarded.http_url, "--api-key", KEYS["acme"], "--stats"
    )
    assert run.returncode == 0, run.stderr
    assert "the guard cut the answer off" in run.stderr
    assert "guard capped (replay" in run.stderr


def test_observed_tenant_is_told_what_would_be_done_and_has_its_whole_answer(guarded: System, caught: Any) -> None:
    answer = ask(guarded, "observed")
    assert answer["usage"]["completion_tokens"] == MAX_TOKENS
    assert (answer["vireo"]["guard"]["action"], answer["vireo"]["guard"]["reasons"][0]) == ("capped", "replay")


def test_ordinary_picture_is_left_alone(guarded: System) -> None:
    guarded_answer = ask(guarded, "bystander", ORDINARY, ORDINARY_QUESTION)
    plain = ask(guarded, "unguarded", ORDINARY, ORDINARY_QUESTION)
    assert guarded_answer["choices"][0]["finish_reason"] == "stop"
    assert guarded_answer["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]
    assert guarded_answer["vireo"]["guard"]["action"] == "normal"
    assert guarded_answer["vireo"]["guard"]["reasons"] == []


def test_probabilities_of_an_answer_about_a_picture_are_closed_over_http_and_grpc(guarded: System) -> None:
    with pytest.raises(openai.PermissionDeniedError, match="image_logprobs"):
        ask(guarded, "unguarded", ORDINARY, logprobs=True)
    with (
        opened(guarded, {"authorization": f"Bearer {KEYS['unguarded']}"}) as door,
        pytest.raises(grpc.RpcError) as refused,
    ):
        list(grpc_call(door, grpc_request(QUESTION, ORDINARY.read_bytes(), logprobs=1)))
    answer = grpc_failure(refused.value)
    assert (answer.status, answer.error) == (grpc.StatusCode.PERMISSION_DENIED, "feature_not_allowed")


def test_what_was_done_is_counted(guarded: System, caught: Any) -> None:
    counted = guarded.metrics()
    assert counted.total("vireo_guard_verdicts_total", action="capped", mode="enforce") >= 1
    assert counted.total("vireo_guard_confirmations_total", outcome="confirmed") >= 1
    assert counted.total("vireo_guard_caught_total", outcome="kept") >= 1
    assert counted.total("vireo_guard_errors_total") == 0


def test_operator_sees_what_was_caught_and_lets_it_go(guarded: System, caught: Any) -> None:
    def operator(*words: str) -> str:
        run = guarded.command("guard", *words, "--port", str(guarded.port))
        assert run.returncode == 0, run.stderr
        return run.stdout

    (entry,) = json.loads(operator("list", "--json"))
    assert (entry["tenant"], entry["model"], entry["reasons"]) == (
        "acme",
        CHAT_MODEL,
        caught["vireo"]["guard"]["reasons"],
    )
    operator("release", entry["id"])
    assert json.loads(operator("list", "--json")) == []
    again = ask(guarded, "rival")
    assert again["vireo"]["guard"]["action"] == "capped"
    assert "replay" not in again["vireo"]["guard"]["reasons"], "it was found anew"
    assert "caught" in operator("audit")
