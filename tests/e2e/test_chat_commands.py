"""``vireo chat`` and ``vireo read`` against the running system: how they end and what they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from serving.client.exits import Exit
from tests.e2e.chats import example, fresh_png, fresh_question
from tests.support.chat_system import ALPHA, BETA, CHAT_MODEL, ChatSystem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

Command = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def vireo(chat: ChatSystem) -> Command:
    def run(*words: object, key: str = ALPHA) -> CompletedProcess[str]:
        options = ["--url", chat.system.http_url, "--api-key", key, "--max-tokens", "32"]
        return chat.system.command(*map(str, words), *options, timeout_s=90)

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(fresh_png())
    return path


def test_chat_writes_the_answer_and_what_it_cost(vireo: Command, picture: Path) -> None:
    question = fresh_question()
    run = vireo("chat", question, "--image", picture, "--stats")
    assert run.returncode == 0, run.stderr
    assert "tokens" in run.stderr
    whole = vireo("chat", question, "--image", picture, "--json", key=BETA)
    assert whole.returncode == 0, whole.stderr
    document = json.loads(whole.stdout)
    assert document["model"] == CHAT_MODEL
    assert document["vireo"]["cache"] == "miss"
    # What is printed is the text, with what could steer a terminal replaced.
    said = document["choices"][0]["message"]["content"]
    assert len(run.stdout.rstrip("\n")) == len(said.rstrip("\n"))


def test_read_prints_a_line_for_each_image_and_goes_on_past_a_bad_one(
    vireo: Command, picture: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"I am not a picture\n" * 9)
    run = vireo("read", picture, bad, example("word-en.png"), "--json")
    assert run.returncode == Exit.PARTLY
    first, second, third = map(json.loads, run.stdout.splitlines())
    assert [first["file"], second["file"]] == [str(picture), str(bad)]
    assert set(second) == {"file", "error"}
    for answered in (first, third):
        assert answered["usage"]["completion_tokens"] > 0
        assert answered["vireo"]["operating_point"].startswith("max_tiles=")


def test_read_where_tells_the_size_and_the_boxes(vireo: Command) -> None:
    run = vireo("read", example("red-square.png"), "--where", "the red square", "--json")
    document = json.loads(run.stdout)
    width, height = document["width"], document["height"]
    for left, top, right, bottom in document["boxes"]:
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height
    assert run.returncode == (0 if document["boxes"] else 1)


def test_wrong_key_and_wrong_model_are_the_callers_fault(vireo: Command, picture: Path) -> None:
    assert vireo("chat", "Hello", key="not-a-key").returncode == Exit.REFUSED
    run = vireo("read", picture, "--model", "no-such-model")
    assert run.returncode == Exit.REFUSED
    assert "model" in run.stderr
