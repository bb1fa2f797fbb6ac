"""``vireo chat``: talk with a running system about images, once or in a session."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.chat_options import (
    DEFAULT_URL,
    BadUse,
    EnergyOption,
    KeyOption,
    LatencyOption,
    MaxTokensOption,
    ModelOption,
    UrlOption,
    request_fields,
)

if TYPE_CHECKING:
    from serving.cli.chat_client import ChatClient
    from serving.cli.chat_session import Conversation

INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C has ended."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chat)


def chat(
    message: Annotated[
        str | None, typer.Argument(help="What to say; absent: standard input if it is a pipe, or else a session.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", help="JPEG, PNG or WebP file, or https URL; repeatable.")
    ] = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(help="Instructions that come before the conversation.")] = None,
    max_tokens: MaxTokensOption = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest token.")] = 0.0,
    latency_ms: LatencyOption = None,
    energy_j: EnergyOption = None,
    draw: Annotated[Path | None, typer.Option(help="Save the first image with the boxes of the answer here.")] = None,
    stats: Annotated[bool, typer.Option(help="Say what the answer took. A session always does.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came, whole.")] = False,
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Talk with a chat model, with images if you like. Exit code 1: the server failed; 2: the request must change."""
    from serving.cli.chat_client import CLIENT_FAULT, ChatClient, ChatFailed, plain
    from serving.cli.chat_session import Conversation
    from serving.cli.pictures import BadPicture, load_picture

    try:
        if message is None and not sys.stdin.isatty():
            message = _piped()
        conversation = Conversation(system, [load_picture(name) for name in image or []])
        _check_use(message, conversation, draw, as_json)
        with ChatClient(url, api_key) as client:
            fields = request_fields(model or client.chat_model(), temperature, max_tokens, latency_ms, energy_j)
            if message is None:
                _talk(client, fields, conversation, draw)
            elif as_json:
                _print_json(client, fields, conversation, message, draw)
            else:
                _answer(client, fields, conversation, message, draw, stats)
    except (BadPicture, BadUse) as error:
        typer.echo(f"vireo: {plain(str(error))}", err=True)
        raise typer.Exit(CLIENT_FAULT) from None
    except ChatFailed as error:
        if as_json and error.document is not None:
            typer.echo(json.dumps(error.document, indent=2))
        else:
            typer.echo(f"vireo: {error.line}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("vireo: stopped", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _piped() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip()


def _check_use(message: str | None, conversation: Conversation, draw: Path | None, as_json: bool) -> None:
    """Before anything is sent. Raises: BadUse."""
    from serving.cli.pictures import DRAWABLE

    if message is None and as_json:
        raise BadUse("--json goes with a message; a session shows text")
    if message is not None and not message.strip():
        raise BadUse("the message is empty; say something, as an argument or on standard input")
    if draw is None:
        return
    if draw.suffix.lower() not in DRAWABLE:
        raise BadUse(f"--draw is {draw}; its name must end in one of {', '.join(DRAWABLE)}")
    first = conversation.shown_first()
    if message is not None and (first is None or first.encoded is None):
        raise BadUse("--draw needs an image to draw upon; give a file with --image")


def _talk(client: ChatClient, fields: dict[str, Any], conversation: Conversation, draw: Path | None) -> None:
    import readline  # noqa: F401  its import gives input() a history and editing; nothing is written to disk

    from serving.cli.chat_session import Session

    Session(client, fields, conversation, input, draw).run()


def _answer(
    client: ChatClient,
    fields: dict[str, Any],
    conversation: Conversation,
    message: str,
    draw: Path | None,
    stats: bool,
) -> None:
    from serving.cli.chat_client import Answer
    from serving.cli.chat_session import Screen

    screen, answer = Screen(), Answer()
    body = {**fields, "messages": conversation.messages(conversation.question(message))}
    screen.answer(client, body, answer)
    screen.ended(answer, shows_stats=stats)
    _save_drawing(fields, conversation, answer.text, draw)


def _print_json(
    client: ChatClient, fields: dict[str, Any], conversation: Conversation, message: str, draw: Path | None
) -> None:
    document = client.complete({**fields, "messages": conversation.messages(conversation.question(message))})
    typer.echo(json.dumps(document, indent=2))
    _save_drawing(fields, conversation, document["choices"][0]["message"]["content"], draw)


def _save_drawing(fields: dict[str, Any], conversation: Conversation, text: str, draw: Path | None) -> None:
    """Raises: BadPicture. Exits with 1 if there is nothing to draw: a script must not go on with an old file."""
    from serving.cli.pictures import draw_boxes, find_boxes

    picture = conversation.shown_first()
    if draw is None or picture is None:
        return
    if not draw_boxes(picture, text, find_boxes(fields["model"], text), draw):
        typer.echo(f"vireo: the answer holds no box; {draw} is not written", err=True)
        raise typer.Exit(1)
