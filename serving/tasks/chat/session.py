"""A conversation in the terminal: what has been said, how an answer is shown, and the commands of a session."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console

from serving.client.pictures import BadPicture, Drawing, Picture, load_picture
from serving.client.told import Failed, joules, plain, reduced, whole
from serving.tasks.chat.client import Answer, ChatClient, ended_by_guard

HELP = """\
/image PATH...  show these with your next message: JPEG, PNG or WebP files, or https URLs
/reset          forget the conversation and the images
/help           this
/quit           end, as Ctrl-D does; Ctrl-C stops an answer"""
_COMMAND = re.compile(r"/[a-z]+")


@dataclass
class Conversation:
    """What goes to the server with each question, and the images that wait for the next one."""

    system: str | None = None
    pictures: list[Picture] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    first_picture: Picture | None = None
    """The first image that the model has been shown, or is about to be."""

    def messages(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        """Everything that has been said, and a question that has no answer yet."""
        system = [] if self.system is None else [{"role": "system", "content": whole(self.system)}]
        return [*system, *self.turns, question]

    def question(self, text: str) -> dict[str, Any]:
        """The next message of the user: images first, then the words."""
        parts = [picture.part() for picture in self.pictures]
        return {"role": "user", "content": [*parts, {"type": "text", "text": whole(text)}] if parts else whole(text)}

    def shown_first(self) -> Picture | None:
        """The image that boxes of the next answer are drawn upon."""
        return self.first_picture or (self.pictures[0] if self.pictures else None)

    def keep(self, question: dict[str, Any], answer: str) -> None:
        """A question has been answered: both are part of what follows."""
        self.turns += [question, {"role": "assistant", "content": answer}]
        self.first_picture = self.shown_first()
        self.pictures = []

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns, self.pictures, self.first_picture = [], [], None


class Screen:
    """Text of answers goes to standard output; everything about them, dim, to standard error."""

    def __init__(self) -> None:
        self._notes = Console(stderr=True, soft_wrap=True)

    def answer(self, client: ChatClient, body: Mapping[str, Any], answer: Answer) -> None:
        """Ask, and write the text as it comes; the line is ended whatever happens. Raises: Failed."""
        try:
            with closing(client.pieces(body, answer)) as pieces:
                for piece in pieces:
                    typer.echo(plain(piece), nl=False)
        finally:
            if answer.text and not answer.text.endswith("\n"):
                typer.echo()

    def note(self, line: str) -> None:
        """Write a line about what happened."""
        self._notes.print(plain(line), style="dim", markup=False, highlight=False)

    def problem(self, line: str) -> None:
        """Write a line about what went wrong."""
        typer.echo(f"vireo: {plain(line)}", err=True)

    def ended(self, answer: Answer, *, shows_stats: bool) -> None:
        """Write what there is to know about a finished answer."""
        if why := ended_by_guard(answer):
            self.note(why)
        elif answer.finish_reason == "length":
            tokens = answer.usage.get("completion_tokens", "?")
            self.note(f"the answer was cut off at {tokens} tokens; --max-tokens or the budget allow no more")
        if shows_stats:
            self.note(stats_line(answer))


def stats_line(answer: Answer) -> str:
    """Tokens, times and the server's report, in one line."""
    usage, report = answer.usage, answer.report
    details = usage.get("prompt_tokens_details", {})
    tokens = usage.get("completion_tokens", 0)
    words = [
        f"{tokens} tokens of {usage.get('prompt_tokens', 0)} "
        f"({details.get('image_tokens', 0)} of images, {details.get('cached_tokens', 0)} cached)",
        "" if answer.first_s is None else f"first {1e3 * answer.first_s:.0f} ms",
        f"{tokens / answer.total_s:.0f} tokens/s" if tokens and answer.total_s > 0 else "",
    ]
    if report:
        words += [
            f"{report['operating_point']}",
            joules(report, ".3g"),
            f"queue {report['queue_ms']:.1f} ms, compute {report['compute_ms']:.1f} ms",
            f"cache {report['cache']}",
            reduced(report),
            guarded(report),
        ]
    return " · ".join(word for word in words if word)


def guarded(report: Mapping[str, Any]) -> str:
    """What the guard did, and why; empty where it did nothing."""
    guard = report.get("guard", {})
    if guard.get("action", "normal") == "normal":
        return ""
    return f"guard {guard['action']} ({', '.join(guard.get('reasons', ())) or 'no reason given'})"


@dataclass
class Session:
    """Many turns. ``read_line`` shows a prompt and returns a line; it raises EOFError at the end of the input."""

    client: ChatClient
    fields: Mapping[str, Any]
    """The request's body but for its messages."""
    conversation: Conversation
    read_line: Callable[[str], str]
    drawing: Drawing | None = None
    screen: Screen = field(default_factory=Screen)

    def run(self) -> None:
        """Talk until the user ends it. What goes wrong in a turn is said, and the session goes on."""
        self.screen.note(f"{self.fields['model']} at {self.client.url}; /help shows the commands")
        while True:
            try:
                line = self.read_line("> ").strip()
            except EOFError:
                typer.echo()
                return
            except KeyboardInterrupt:
                typer.echo()
                self.screen.note("Ctrl-D or /quit ends")
                continue
            if line == "/quit":
                return
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            if _COMMAND.fullmatch(line.split(" ")[0]):
                self._command(*line.partition(" ")[::2])
            elif line:
                self._ask(line)
        except Failed as error:
            self.screen.problem(error.line)
        except KeyboardInterrupt:
            self.screen.note("stopped")

    def _command(self, name: str, rest: str) -> None:
        if name == "/help":
            self.screen.note(HELP)
        elif name == "/reset":
            self.conversation.reset()
            self.screen.note("forgotten")
        elif name == "/image":
            self._add_pictures(rest)
        else:
            self.screen.problem(f"{name} is no command; /help shows them")

    def _add_pictures(self, rest: str) -> None:
        try:
            names = shlex.split(rest)
        except ValueError:  # a quote that does not end: a name with an apostrophe
            names = [rest.strip()]
        if not names:
            raise BadPicture("/image needs the path of a file or an https URL")
        added = [load_picture(name) for name in names]
        self.conversation.pictures += added
        self.screen.note(f"with your next message: {', '.join(p.name for p in self.conversation.pictures)}")

    def _ask(self, text: str) -> None:
        """One turn. An answer that was stopped is kept as far as it came; a question that failed is not.

        Raises: Failed.
        """
        talk, answer = self.conversation, Answer()
        question, canvas = talk.question(text), talk.shown_first()
        try:
            self.screen.answer(self.client, {**self.fields, "messages": talk.messages(question)}, answer)
        except KeyboardInterrupt:
            if answer.text:
                talk.keep(question, answer.text)
            raise
        except Failed as error:
            if not error.is_servers_fault:
                talk.pictures = []  # they may be what was wrong
            raise
        if answer.text:
            talk.keep(question, answer.text)
        self.screen.ended(answer, shows_stats=True)
        if self.drawing is not None and canvas is not None and self.drawing.save(canvas, answer.text):
            self.screen.note(f"boxes drawn: {self.drawing.out}")
