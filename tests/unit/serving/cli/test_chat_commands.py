"""``vireo chat`` and ``vireo read`` as a user types them, against the front door with a fake behind it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from models.registry import find
from serving.client.exits import Exit
from serving.client.pictures import Drawing
from serving.domain import GuardBlock, ImagePart
from serving.errors import BackendError, EngineFailed, InvalidImage, QueueFull
from serving.front.auth import Authenticator
from serving.tasks.chat.cli import register
from serving.tasks.chat.client import ChatClient
from serving.tasks.chat.domain import Message, Role, TextPart
from serving.tasks.chat.session import Conversation, Session
from tests.support.fake_service import CHAT_MODEL, WORDS, FakeService, make_chat_card
from tests.support.media_files import bad_files, encode, gradient
from tests.support.ports import free_port
from tests.support.served_door import ServedDoor, served

TEXT = "".join(WORDS)
BOX = "<box><100><200><,><500><900></box>"


@pytest.fixture
def door() -> Iterator[ServedDoor]:
    with served(FakeService()) as door:
        yield door


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "my picture.png"
    path.write_bytes(encode(gradient(80, 200)))
    return path


def vireo(*arguments: str, stdin: str | bytes | None = None, **env: str) -> Result:
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, list(arguments), input=stdin, env={"NO_COLOR": "1", "COLUMNS": "200", **env})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def said(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def images_of(message: Message) -> list[ImagePart]:
    return [part for part in message.parts if isinstance(part, ImagePart)]


@pytest.mark.parametrize(
    "words", [["read", "{png}", "--where", "the square"], ["chat", "x", "-i", "{png}", "--draw", "o.png"]]
)
def test_model_that_names_no_places_is_not_asked_for_them(words: list[str], png: Path) -> None:
    words = [word.format(png=png) for word in words]
    with served(FakeService(chat_cards=(make_chat_card("texthawk2-nano", family="fake"),))) as door:
        result = vireo(*words, "--url", door.url)
        assert not door.service.chats
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "vireo: texthawk2-nano names no places in images; families whose models do: texthawk2"
    )


# -- vireo chat, once ------------------------------------------------------------------------------------------------


def test_answer_is_printed_and_nothing_else(door: ServedDoor, png: Path) -> None:
    result = vireo("chat", "What is this?", "--image", str(png), "--url", door.url)
    assert (result.exit_code, result.stdout, result.stderr) == (0, TEXT + "\n", "")
    (request,) = door.service.chats
    (message,) = request.messages
    assert [type(part) for part in message.parts] == [ImagePart, TextPart]
    assert images_of(message)[0].encoded == png.read_bytes()
    assert said(message) == "What is this?"
    assert (request.model, request.is_streamed, request.sampling.temperature) == (CHAT_MODEL, True, 0.0)


def test_options_reach_the_server(door: ServedDoor) -> None:
    words = "--system Be_brief --max-tokens 2 --temperature 0.5 --latency-ms 900 --energy-j 3 --model texthawk2-nano"
    result = vireo("chat", "Hello", *words.split(), "--url", door.url)
    assert result.stdout == "Two squares \n"
    assert "cut off at 2 tokens" in result.stderr
    (request,) = door.service.chats
    assert [message.role for message in request.messages] == [Role.SYSTEM, Role.USER]
    assert said(request.messages[0]) == "Be_brief"
    assert (request.sampling.max_tokens, request.sampling.temperature) == (2, 0.5)
    assert (request.budget.latency_ms, request.budget.energy_j) == (900, 3)


def test_answer_that_the_guard_cut_off_says_so_and_why(door: ServedDoor) -> None:
    guard: GuardBlock = {"score": 0.999, "action": "capped", "reasons": ["length", "confirmed"]}
    door.service.report = replace(door.service.report, guard=guard)
    result = vireo("chat", "Hello", "--max-tokens", "2", "--stats", "--url", door.url)
    note, stats = result.stderr.splitlines()
    assert note == "the guard cut the answer off at 2 tokens, for the image looks crafted (length, confirmed)"
    assert stats.endswith(" · guard capped (length, confirmed)")


def test_text_that_the_guard_cut_off_is_not_passed_over_when_images_are_read(door: ServedDoor, png: Path) -> None:
    guard: GuardBlock = {"score": 1.0, "action": "capped", "reasons": ["replay"]}
    door.service.report = replace(door.service.report, guard=guard)
    result = vireo("read", str(png), "--max-tokens", "2", "--url", door.url)
    assert (result.exit_code, result.stdout) == (0, "Two squares \n")
    assert result.stderr.endswith("the guard cut the answer off at 2 tokens, for the image looks crafted (replay)\n")


def test_stats_are_a_line_on_standard_error(door: ServedDoor) -> None:
    result = vireo("chat", "Hello", "--stats", "--url", door.url)
    assert result.stdout == TEXT + "\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("5 tokens of 10 (0 of images, 4 cached) · first ")
    assert "tokens/s" in line
    assert line.endswith(
        "fast · 0.25 J (estimate) · queue 1.5 ms, compute 2.5 ms · cache miss · degraded: exit_threshold"
    )


def test_message_comes_from_a_pipe(door: ServedDoor) -> None:
    assert vireo("chat", "--url", door.url, stdin=b"What about\nthis \xff?\n").exit_code == 0
    assert said(door.service.chats[0].messages[0]) == "What about\nthis \ufffd?"


def test_json_is_the_answer_as_it_came(door: ServedDoor) -> None:
    result = vireo("chat", "Hello", "--json", "--url", door.url)
    document = json.loads(result.stdout)
    assert document["object"] == "chat.completion"
    assert document["choices"][0]["message"]["content"] == TEXT
    assert not door.service.chats[0].is_streamed


def test_url_of_an_image_is_left_to_the_server(door: ServedDoor) -> None:
    assert vireo("chat", "x", "--image", "https://example.org/a.png", "--url", door.url).exit_code == 0
    assert images_of(door.service.chats[0].messages[0])[0].url == "https://example.org/a.png"
    result = vireo("chat", "x", "--image", "http://example.org/a.png", "--url", door.url)
    assert result.exit_code == Exit.REFUSED
    assert result.stderr.startswith("vireo: image_url_refused: image is 'http://example.org/a.png'; send an https://")


def test_key_is_sent_and_a_missing_one_is_said() -> None:
    keys = Authenticator({"acme": hashlib.sha256(b"secret").hexdigest()}, False)
    with served(FakeService(), keys) as door:
        refused = vireo("chat", "Hello", "--url", door.url)
        assert refused.exit_code == Exit.REFUSED
        assert "--key @FILE" in refused.stderr
        assert refused.stderr.startswith("vireo: invalid_api_key: ")
        assert vireo("chat", "Hello", "--key", "secret", "--url", door.url).stdout == TEXT + "\n"
        assert vireo("chat", "Hello", VIREO_API_KEY="secret", VIREO_URL=door.url).stdout == TEXT + "\n"
        assert vireo("chat", "Hello", "--key", "a\nb", "--url", door.url).exit_code == 2
    assert {chat.tenant for chat in door.service.chats} == {"acme"}


@pytest.mark.parametrize("name", ["empty", "text", "gif", "bmp", "tiff", "svg", "missing", "folder"])
@pytest.mark.parametrize("command", ["chat", "read"])
def test_file_that_is_no_picture_is_refused_here_by_name(
    command: str, name: str, door: ServedDoor, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.png"
    if name == "folder":
        path.mkdir()
    elif name != "missing":
        path.write_bytes(bad_files()[name][0])
    words = ["chat", "x", "--image", str(path)] if command == "chat" else ["read", str(path)]
    result = vireo(*words, "--url", door.url)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"vireo: {path} ")
    assert line.endswith("give a JPEG, PNG or WebP file")
    assert door.service.chats == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["  "], "the message is empty"),
        (["x", "--draw", "out.png"], "--draw needs an image"),
        (["x", "--draw", "out.txt"], "--draw is out.txt; its name must end in one of .png"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_sent(words: list[str], line: str) -> None:
    result = vireo("chat", *words, "--url", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"vireo: {line}")


def test_empty_pipe_is_not_a_session(door: ServedDoor) -> None:
    result = vireo("chat", "--url", door.url, stdin="")
    assert result.exit_code == 2
    assert "the message is empty" in result.stderr


@pytest.mark.parametrize("command", [["chat", "x"], ["read", "https://example.org/a.png"]])
@pytest.mark.parametrize(
    ("url", "exit_code", "remedy"),
    [
        ("http://127.0.0.1:{port}", Exit.UNREACHABLE, "`vireo up` starts a system here"),
        ("localhost:{port}/", Exit.UNREACHABLE, "`vireo up` starts a system here"),
        ("http://[", Exit.USAGE, "write HOST:PORT"),
        ("ftp://x", Exit.USAGE, "write HOST:PORT"),
    ],
)
def test_nobody_there_is_one_line_with_the_remedy(command: list[str], url: str, exit_code: Exit, remedy: str) -> None:
    result = vireo(*command, "--url", url.format(port=free_port()))
    assert (result.exit_code, remedy in result.stderr) == (exit_code, True), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("vireo: ")


def test_something_else_on_the_port_is_said() -> None:
    with served(FakeService()) as door:
        result = vireo("chat", "x", "--model", "m", "--url", door.url + "/elsewhere?")
    assert result.exit_code == Exit.REFUSED


# -- errors of the server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (InvalidImage("image is broken; send another"), Exit.REFUSED, "invalid_image: image is broken; send another"),
        (QueueFull("queue is full", retry_after_s=3), Exit.BUSY, "queue_full: queue is full (retry in 3 s)"),
        (EngineFailed("the model\nfailed\x1b[2J"), 1, "engine_failed: the model failed\ufffd[2J"),
        (BackendError("internal error. Retry"), 1, "internal_error: internal error. Retry"),
    ],
)
@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_error_is_one_plain_line_or_the_document(
    error: BaseException, exit_code: int, line: str, json_option: list[str]
) -> None:
    with served(FakeService(chat_errors={0: error})) as door:
        result = vireo("chat", "x", *json_option, "--url", door.url)
    assert result.exit_code == exit_code
    if json_option:
        assert json.loads(result.stdout)["error"]["code"] == line.split(":")[0]
    else:
        assert result.stdout == ""
        assert result.stderr.startswith(f"vireo: {line}")
        assert len(result.stderr.splitlines()) == 1


def test_unknown_model_and_no_chat_model(door: ServedDoor) -> None:
    result = vireo("chat", "x", "--model", "none", "--url", door.url)
    assert (result.exit_code, "model_not_found" in result.stderr) == (Exit.REFUSED, True)
    with served(FakeService(chat_cards=())) as bare:
        result = vireo("chat", "x", "--url", bare.url)
    assert (result.exit_code, "no model for chat is served" in result.stderr) == (Exit.REFUSED, True)


def test_stream_that_fails_half_way_shows_what_came_and_the_error() -> None:
    gate = asyncio.Event()
    with served(FakeService(chat_errors={2: EngineFailed("lost it")}, chat_gates={2: gate})) as door:
        door.loop.call_later(0.1, gate.set)
        result = vireo("chat", "x", "--url", door.url)
    assert result.exit_code == 1
    assert result.stdout == "Two squares \n"
    assert result.stderr == "vireo: engine_failed: lost it\n"


def test_text_cannot_steer_the_terminal_nor_break_the_stream() -> None:
    words = ["a\x1b[31mb", "\u2028c\x85d", "\re\tf\n"]
    with served(FakeService(words=words)) as door:
        result = vireo("chat", "x", "--url", door.url)
    assert result.stdout == "a\ufffd[31mb\u2028c\ufffdd\ufffde\tf\n"
    assert result.exit_code == 0


# -- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_are_shown_as_they_are_and_drawn(png: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    with served(FakeService(words=[f"the circle {BOX}"])) as door:
        result = vireo("chat", "Where?", "--image", str(png), "--draw", str(out), "--url", door.url)
    assert (result.exit_code, result.stdout) == (0, f"the circle {BOX}\n")
    plain, drawn = Image.open(png).convert("RGB"), Image.open(out).convert("RGB")
    assert drawn.size == plain.size == (200, 80)
    for x, y in [(20, 40), (100, 40), (60, 72)]:  # edges of 100..500 of 999 across, 200..900 down
        assert drawn.getpixel((x, y)) == (230, 25, 75)
    assert drawn.getpixel((60, 60)) == plain.getpixel((60, 60))


def test_no_box_to_draw_leaves_no_file(door: ServedDoor, png: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = vireo("chat", "Where?", "--image", str(png), "--draw", str(out), "--url", door.url)
    assert (result.exit_code, out.exists()) == (1, False)
    assert "holds no box" in result.stderr


# -- vireo read ------------------------------------------------------------------------------------------------------


def test_one_image_is_its_text(door: ServedDoor, png: Path) -> None:
    result = vireo("read", str(png), "--url", door.url)
    assert (result.exit_code, result.stdout) == (0, TEXT + "\n")
    assert said(door.service.chats[0].messages[0]) == "Read the text."
    assert vireo("read", str(png), "--page", "--url", door.url).exit_code == 0
    assert said(door.service.chats[1].messages[0]) == "Read the whole page."


def test_several_images_are_a_line_each_and_a_bad_one_stops_no_other(door: ServedDoor, png: Path) -> None:
    bad = png.with_name("bad.gif")
    bad.write_bytes(bad_files()["gif"][0])
    result = vireo("read", str(png), str(bad), str(png), "--url", door.url)
    assert result.exit_code == Exit.PARTLY
    assert result.stdout == f'{png}: Two squares and a "circle". 方块\n' * 2
    assert result.stderr == f"vireo: {bad} is a GIF; give a JPEG, PNG or WebP file\n"


def test_failure_of_the_server_at_one_image_stops_no_other(png: Path) -> None:
    with served(FakeService(chat_errors={0: EngineFailed("lost it")})) as door:
        result = vireo("read", str(png), str(png), "--json", "--url", door.url)
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["error"]["code"] for line in lines] == ["engine_failed"] * 2


@pytest.mark.parametrize("what", ["the red square", "the red square?"])
def test_where_prints_pixels(what: str, png: Path) -> None:
    with served(FakeService(words=[BOX])) as door:
        assert vireo("read", str(png), "--where", what, "--url", door.url).stdout == "20 16 100 72\n"
        both = vireo("read", str(png), str(png), "--where", what, "--url", door.url)
        as_json = vireo("read", str(png), "--where", what, "--json", "--url", door.url)
    assert both.stdout == f"{png}: 20 16 100 72\n" * 2
    document = json.loads(as_json.stdout)
    assert document["boxes"] == [[20, 16, 100, 72]]
    assert (document["width"], document["height"], document["text"]) == (200, 80, BOX)
    assert {said(chat.messages[0]) for chat in door.service.chats} == {"Where is the red square?"}


def test_folder_under_a_name_of_its_own_is_asked_for_places(png: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    with served(FakeService(words=[BOX], chat_cards=(make_chat_card("mine"),))) as door:
        found = vireo("read", str(png), "--where", "it", "--model", "mine", "--url", door.url)
        drawn = vireo("chat", "Where?", "-i", str(png), "--model", "mine", "--draw", str(out), "--url", door.url)
    assert (found.stdout, drawn.exit_code, out.exists()) == ("20 16 100 72\n", 0, True), found.stderr + drawn.stderr


def test_where_counts_pixels_of_the_upright_image(tmp_path: Path) -> None:
    """Regression: a photo of a phone held upright is stored lying, with a tag that says so; the server turns it."""
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 80)).save(path, exif=exif)
    with served(FakeService(words=["<box><000><000><,><999><999></box>"])) as door:
        assert vireo("read", str(path), "--where", "it", "--url", door.url).stdout == "0 0 80 200\n"


def test_where_without_a_box_is_a_failure(door: ServedDoor, png: Path) -> None:
    result = vireo("read", str(png), "--where", "it", "--url", door.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "holds no box: Two squares" in result.stderr


@pytest.mark.parametrize("words", [["--where", "x", "--page"], ["--where", " ?"]])
def test_read_refuses_options_that_make_no_sense(words: list[str], png: Path) -> None:
    assert vireo("read", str(png), *words).exit_code == 2


# -- sessions --------------------------------------------------------------------------------------------------------


def talk(door: ServedDoor, lines: Sequence[str | type[BaseException]], **options: Any) -> Conversation:
    """Hold a session of these lines; a class stands for an interrupt or the end of the input."""
    script = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(script)
        if isinstance(line, str):
            return line
        raise line

    conversation = Conversation(options.pop("system", None))
    with ChatClient(door.url, None) as client:
        Session(client, {"model": CHAT_MODEL, "temperature": 0}, conversation, read_line, **options).run()
    return conversation


def test_session_sends_what_was_said_before(door: ServedDoor, png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk(door, [f'/image "{png}"', "One", KeyboardInterrupt, "", "Two", "/reset", "Three", EOFError], system="S")
    first, second, third = (chat.messages for chat in door.service.chats)
    assert [said(message) for message in second] == ["S", "One", TEXT, "Two"]
    assert [len(images_of(message)) for message in second] == [0, 1, 0, 0]
    assert second[: len(first)] == first
    assert [said(message) for message in third] == ["S", "Three"]
    out, err = capsys.readouterr()
    assert out.count(TEXT) == 3
    assert err.count("0.25 J (estimate)") == 3
    assert "my picture.png" in err


def test_session_survives_mistakes(door: ServedDoor, png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["/imagine x", "/image", "/image nowhere.png", "/image it's.png", "/help", "/etc/passwd is what?", "/quit"]
    talk(door, lines)
    assert [said(chat.messages[0]) for chat in door.service.chats] == ["/etc/passwd is what?"]
    err = capsys.readouterr().err
    assert "/imagine is no command" in err
    assert "needs the path of a file" in err
    assert "nowhere.png cannot be read" in err
    assert "it's.png cannot be read" in err
    assert "/image PATH..." in err


@pytest.mark.parametrize(("error", "images_left"), [(QueueFull("full"), 1), (InvalidImage("broken"), 0)])
def test_failed_turn_is_not_part_of_the_conversation(
    error: BaseException, images_left: int, png: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(FakeService(chat_errors={0: error})) as door:
        conversation = talk(door, [f"/image '{png}'", "One", EOFError])
    assert conversation.turns == []
    assert len(conversation.pictures) == images_left
    assert str(error) in capsys.readouterr().err


def test_session_draws_upon_the_first_image_of_the_conversation(
    png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    drawing = Drawing(out, find(CHAT_MODEL)[0].part("boxes"))
    with served(FakeService(words=[BOX])) as door:
        talk(
            door, ["Where?", f"/image '{png}'", "Where?", "/image 'nowhere.png'", "And now?", "/quit"], drawing=drawing
        )
    assert capsys.readouterr().err.count("boxes drawn") == 2
    with Image.open(out) as drawn:
        assert drawn.size == (200, 80)
