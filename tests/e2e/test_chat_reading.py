"""The trained checkpoint reads words and finds shapes through every client. Skipped where its weights are absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.registry import find
from serving.client.pictures import in_pixels
from tests.e2e.chats import body_of, example, grpc_answer, grpc_call, grpc_request, turn
from tests.e2e.surfaces import Door
from tests.support import image_cases
from tests.support.chat_system import ALPHA, CHAT_MODEL, ChatSystem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.usefixtures("trained_checkpoint")]

WORD, CHINESE_WORD = example("word-en.png"), example("word-zh.png")
GREY_WORD = image_cases.FOLDER / image_cases.LANTERN
SAID = {WORD: "lantern", CHINESE_WORD: "天地和平", GREY_WORD: "lantern"}
SQUARE = example("red-square.png")
SQUARE_SIZE, SQUARE_BOX = (448, 224), (290, 50, 360, 120)
READ, FIND = "Read the text.", "Where is the red square?"


def overlap(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (box, other)]
    return width * height / (sum(areas) - width * height)


def check_box(text: str) -> None:
    boxes = in_pixels(find(CHAT_MODEL)[0].part("boxes")(text), SQUARE_SIZE)
    assert len(boxes) == 1, text
    assert overlap(boxes[0], SQUARE_BOX) >= 0.5, text


def by_openai(chat: ChatSystem, question: str, image: Path) -> str:
    with chat.client() as client:
        answer = client.chat.completions.create(**body_of(turn(question, image.read_bytes())))
    return str(answer.choices[0].message.content)


def by_grpc(door: Door, question: str, image: Path) -> str:
    return grpc_answer(grpc_call(door, grpc_request(question, image.read_bytes()))).text


def by_command(chat: ChatSystem, path: Path, *options: str) -> str:
    options = (*options, "--json", "--url", chat.system.http_url, "--api-key", ALPHA)
    run = chat.system.command("read", str(path), *options)
    assert run.returncode == 0, run.stderr
    return str(json.loads(run.stdout)["text"])


@pytest.mark.parametrize("word", SAID, ids=["english", "chinese", "4-bit grey with a transparent level"])
def test_every_client_reads_the_word(word: Path, chat: ChatSystem, other_chat_door: Door) -> None:
    told = [by_openai(chat, READ, word), by_grpc(other_chat_door, READ, word), by_command(chat, word)]
    assert [text.strip() for text in told] == 3 * [SAID[word]]


def test_every_client_finds_the_shape(chat: ChatSystem, other_chat_door: Door) -> None:
    check_box(by_openai(chat, FIND, SQUARE))
    check_box(by_grpc(other_chat_door, FIND, SQUARE))
    check_box(by_command(chat, SQUARE, "--where", "the red square"))
