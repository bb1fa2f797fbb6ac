"""``vireo chat`` and ``vireo read``: talk with a running system about images, or have it read them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.client.exits import Exit
from serving.client.options import (
    ASKING,
    DEFAULT_URL,
    AskingCommand,
    EnergyOption,
    JsonOption,
    KeyOption,
    LatencyOption,
    MaxTokensOption,
    ModelOption,
    SetOption,
    UrlOption,
    given,
)
from serving.client.told import Failed, asked_plainly
from serving.tasks.chat.reading import read

if TYPE_CHECKING:
    from serving.client.pictures import Drawing
    from serving.tasks.chat.client import ChatClient
    from serving.tasks.chat.session import Conversation


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(cls=AskingCommand, rich_help_panel=ASKING, epilog=_CHAT_EXAMPLES)(chat)
    app.command(cls=AskingCommand, rich_help_panel=ASKING, epilog=_READ_EXAMPLES)(read)


_CHAT_EXAMPLES = """\b
Examples:
  vireo chat "Read the text." --image examples/word-en.png
  vireo chat < question.txt --image a.png --image b.png
  vireo chat                                       a session; try /help

With --model ID, --help lists the settings of the model.
"""
_READ_EXAMPLES = """\b
Examples:
  vireo read receipt.png label.jpg
  vireo read page.png --page
  vireo read examples/red-square.png --where "the red square"

Exit code 5: some of several images have no answer. With --model ID, --help lists the settings of the model.
"""


def chat(
    message: Annotated[
        str | None, typer.Argument(help="What to say; default: standard input if it is a pipe, otherwise a session.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", help="JPEG, PNG or WebP file, or https URL; repeatable.")
    ] = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(help="Instructions that come before the conversation.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 picks the most likely token.")] = 0.0,
    latency_ms: LatencyOption = None,
    energy_j: EnergyOption = None,
    settings: SetOption = None,
    draw: Annotated[Path | None, typer.Option(help="Save the first image with the boxes of the answer here.")] = None,
    stats: Annotated[bool, typer.Option(help="Show what the answer cost. A session always does.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Chat with a model, about images if you like."""
    from serving.client.pictures import Drawing, boxes_of, load_picture
    from serving.tasks.chat.client import ChatClient
    from serving.tasks.chat.session import Conversation

    with asked_plainly(as_json=as_json):
        if message is None and not sys.stdin.isatty():
            message = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        conversation = Conversation(system, [load_picture(name) for name in image or []])
        _check_use(message, conversation, draw, as_json)
        with ChatClient(url, api_key) as client:
            chosen, values = client.choose("chat", model, settings)
            drawing = None if draw is None else Drawing(draw, boxes_of(client, chosen))
            fields = given(
                model=chosen,
                temperature=temperature,
                max_tokens=max_tokens,
                vireo=given(latency_ms=latency_ms, energy_j=energy_j, settings=values or None) or None,
            )
            if message is None:
                _talk(client, fields, conversation, drawing)
                return
            body = {**fields, "messages": conversation.messages(conversation.question(message))}
            text = _print_json(client, body) if as_json else _print_text(client, body, shows_stats=stats)
            _save_drawing(conversation, text, drawing)


def _check_use(message: str | None, conversation: Conversation, draw: Path | None, as_json: bool) -> None:
    """Before anything is sent. Raises: Failed."""
    from serving.client.pictures import DRAWABLE

    if message is None and as_json:
        raise Failed("--json goes with a message; a session shows text")
    if message is not None and not message.strip():
        raise Failed("the message is empty; say something, as an argument or on standard input")
    if draw is None:
        return
    if draw.suffix.lower() not in DRAWABLE:
        raise Failed(f"--draw is {draw}; its name must end in one of {', '.join(DRAWABLE)}")
    first = conversation.shown_first()
    if message is not None and (first is None or first.encoded is None):
        raise Failed("--draw needs an image to draw upon; give a file with --image")


def _talk(client: ChatClient, fields: dict[str, Any], conversation: Conversation, drawing: Drawing | None) -> None:
    import readline  # noqa: F401  its import gives input() a history and editing; nothing is written to disk

    from serving.tasks.chat.session import Session

    Session(client, fields, conversation, input, drawing).run()


def _print_text(client: ChatClient, body: dict[str, Any], *, shows_stats: bool) -> str:
    from serving.tasks.chat.client import Answer
    from serving.tasks.chat.session import Screen

    screen, answer = Screen(), Answer()
    screen.answer(client, body, answer)
    screen.ended(answer, shows_stats=shows_stats)
    return answer.text


def _print_json(client: ChatClient, body: dict[str, Any]) -> str:
    document, answer = client.complete(body)
    typer.echo(json.dumps(document, indent=2))
    return answer.text


def _save_drawing(conversation: Conversation, text: str, drawing: Drawing | None) -> None:
    """Raises: Failed: among others if there is nothing to draw, for a script must not go on with an old file."""
    picture = conversation.shown_first()
    if drawing is None or picture is None:
        return
    if not drawing.save(picture, text):
        raise Failed(f"the answer holds no box; {drawing.out} is not written", Exit.FAILED)
