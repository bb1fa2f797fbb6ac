"""The trained checkpoint reads words and finds shapes through every client. Skipped where its weights are absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.texthawk2.tokens import find_boxes
from serving.cli.pictures import pixel_boxes
from tests.e2e.chats import (
    RED_SQUARE,
    body_of,
    example,
    grpc_answer,
    grpc_call,
    grpc_request,
    red_square_png,
    turn,
    word_png,
)
from tests.e2e.surfaces import Door
from tests.support.chat_system import ALPHA, ChatSystem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.usefixtures("trained_checkpoint")]

WORD, CHINESE_WORD = "harbour", "天地和平"
READ, FIND = "Read the text.", "Where is the red square?"
SIZE = (224, 112)
"""Width and height of ``red_square_png``."""


def overlap(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (box, other)]
    return width * height / (sum(areas) - width * height)


def check_box(text: str) -> None:
    assert len(find_boxes(text)) == 1, text
    assert overlap(pixel_boxes(text, SIZE)[0], RED_SQUARE) >= 0.5, text


def by_openai(chat: ChatSystem, question: str, image: bytes) -> str:
    with chat.client() as client:
        answer = client.chat.completions.create(**body_of(turn(question, image)))
    return str(answer.choices[0].message.content)


def by_grpc(door: Door, question: str, image: bytes) -> str:
    request = grpc_request(question, image)
    return grpc_answer(grpc_call(door, request)).text


def by_command(chat: ChatSystem, path: Path, *options: str) -> dict[str, object]:
    options = (*options, "--json", "--url", chat.system.http_url, "--api-key", ALPHA)
    run = chat.system.command("read", str(path), *options)
    assert run.returncode == 0, run.stderr
    document: dict[str, object] = json.loads(run.stdout)
    return document


@pytest.fixture
def chinese() -> Path:
    path = example("word-zh.png")
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the examples")
    return path


def test_openai_client_reads_an_english_word_and_finds_a_shape(chat: ChatSystem) -> None:
    assert by_openai(chat, READ, word_png(WORD)).strip() == WORD
    check_box(by_openai(chat, FIND, red_square_png()))


def test_grpc_reads_an_english_word_and_finds_a_shape(chat: ChatSystem, other_chat_door: Door) -> None:
    assert by_grpc(other_chat_door, READ, word_png(WORD)).strip() == WORD
    check_box(by_grpc(other_chat_door, FIND, red_square_png()))


def test_command_line_reads_an_english_word_and_finds_a_shape(chat: ChatSystem, tmp_path: Path) -> None:
    word, square = tmp_path / "word.png", tmp_path / "square.png"
    word.write_bytes(word_png(WORD))
    square.write_bytes(red_square_png())
    assert str(by_command(chat, word)["text"]).strip() == WORD
    check_box(str(by_command(chat, square, "--where", "the red square")["text"]))


def test_every_client_reads_the_same_chinese_word(chat: ChatSystem, other_chat_door: Door, chinese: Path) -> None:
    said = by_openai(chat, READ, chinese.read_bytes()).strip()
    assert said == CHINESE_WORD
    assert by_grpc(other_chat_door, READ, chinese.read_bytes()).strip() == said
    assert str(by_command(chat, chinese)["text"]).strip() == said
