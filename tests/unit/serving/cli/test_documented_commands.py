"""Every ``vireo ...`` that a page shows is one that the real parser takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from models.registry import families
from serving.cli.app import build
from serving.cli.convert_commands import group_for
from serving.client.options import AskingCommand
from tests.support.source_tree import ROOT, tracked_files

_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"^\s*(?:\$ |try +)?(vireo [^\n]+)", re.MULTILINE)
_INLINE = re.compile(r"`(vireo [^`\n]+)`")
_SHELL = {"<", ">", "|", "&&", ";", "..."}


def _pages() -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".md" and "decisions" not in path.parts]


def commands_of(text: str) -> Iterator[str]:
    """Lines of blocks, and what stands in backquotes."""
    for block in _BLOCK.findall(text):
        yield from _SHOWN.findall(block)
    yield from _INLINE.findall(_BLOCK.sub("", text))


def words_of(command: str) -> list[list[str]]:
    """The words of each command on a line: ``a b | c`` of a list of commands stands for ``a b`` and ``a c``."""
    try:
        words = shlex.split(command, comments=True)[1:]
    except ValueError:  # an apostrophe of a sentence
        words = command.split()[1:]
    ends = [place for place, word in enumerate(words) if word in _SHELL]
    first = words[: ends[0]] if ends else words
    others = [[words[place + 1]] for place in ends if words[place] == "|" and words[place + 1] in _verbs()]
    return [first, *others]


@cache
def _root() -> Any:
    return typer.main.get_command(build())


def _verbs() -> set[str]:
    return set(_root().commands)


def _skeleton_settings() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "serving/cli/skeleton").rglob("*.tmpl")]
    return {name for text in texts for name in re.findall(r'Knob\(\s*name="(\w+)"', text)}


def check(words: Sequence[str]) -> None:
    """Raises: UsageError, ValueError: no such command or option."""
    command, name, left = _root(), "vireo", list(words)
    while hasattr(command, "commands") and left:
        if left[0] not in command.commands:
            if left[0].startswith("-") or getattr(command, "invoke_without_command", False):
                break
            raise ValueError(f"there is no command {left[0]!r}")
        name, command = left[0], command.commands[left.pop(0)]
        if name == "convert" and left and left[0] in families():
            command = typer.main.get_command(group_for(left))
    if name == "convert":
        return
    context = command.context_class(command, info_name=name)
    if isinstance(command, AskingCommand):
        left = list(command._with_settings(left))
        settings = {knob.name for family in families().values() for knob in family.knobs} | _skeleton_settings()
        given = {word.removeprefix("--set=").partition("=")[0] for word in left if word.startswith("--set=")}
        if unknown := given - settings:
            raise ValueError(f"no model has the settings {unknown}")
    command.make_parser(context).parse_args(left)


@pytest.mark.parametrize("page", _pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_on_pages_are_ones_that_there_are(page: Path) -> None:
    wrong = []
    for command in commands_of(page.read_text(encoding="utf-8")):
        for words in words_of(command):
            try:
                check(words)
            except Exception as error:
                wrong.append(f"{command}: {error}")
    assert not wrong


@pytest.mark.parametrize(
    "command", ["vireo clasify a.png", "vireo up --modle x", "vireo classify a --exit-9 1", "vireo models shw x"]
)
def test_wrong_ones_are_found(command: str) -> None:
    (words,) = words_of(command)
    with pytest.raises(Exception, match=r"no command|No such option|no model has"):
        check(words)


def test_pages_show_commands() -> None:
    found = [command for page in _pages() for command in commands_of(page.read_text(encoding="utf-8"))]
    assert len(found) > 60
