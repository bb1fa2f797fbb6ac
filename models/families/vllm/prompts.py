"""From a conversation to token ids through a folder's own chat template, as vLLM's server does it. Free of torch.

What users type never becomes a control token: it is taken out, encoded as the characters that it consists of, and put
back. Text without any gives the ids of vLLM's own server.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from models.contract import Grid, Turn, Variant


class _Generation(Extension):
    """``{% generation %}`` marks for training what an assistant says; here it says nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """Keep what it holds."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _compiled(template: str) -> jinja2.Template:
    """As transformers does it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


class FolderPrompts:
    """``models.contract.Prompts`` of a folder. A picture's grid is one row of as many tokens as it becomes."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """``config``: of a variant; ``image_id`` may be lacking as long as only ``encoded`` is used."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        raw = json.loads(tokenizer.to_str())
        self._tokenizer = tokenizer
        self._plain = Tokenizer.from_str(json.dumps({**raw, "added_tokens": []}))
        self.image_id: int = config.get("image_id", -1)
        self.end_of_turn_id: int = config["end_id"]
        self._template = _compiled(config["template"])
        self._special_tokens = config["special_tokens"]
        self._is_string, self._image_text = config["content"] == "string", config["image_text"]
        control = [token for token in raw["added_tokens"] if token["special"] or token["id"] == self.image_id]
        self._control_ids = frozenset(token["id"] for token in control)
        names = sorted((token["content"] for token in control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._mark = f"\ue000{secrets.token_hex(8)}"  # nobody can type it
        self._marked = re.compile(rf"{self._mark}(\d+)\ue001")

    def build(self, messages: Iterable[Turn]) -> list[int]:
        """See ``Prompts``. Raises: ValueError: the model's template does not take such a conversation."""
        messages = list(messages)
        ids = self.encoded(messages)
        num_images = sum(part is None for _, parts in messages for part in parts)
        if ids.count(self.image_id) != num_images:
            raise ValueError("the model's chat template does not take images in these messages")
        return ids

    def encoded(self, messages: Iterable[Turn]) -> list[int]:
        """Ids of a conversation, whatever marks an image."""
        typed: list[str] = []

        def marked(found: re.Match[str]) -> str:
            typed.append(found[0])
            return f"{self._mark}{len(typed) - 1}\ue001"

        turns = [
            (role, [part if part is None else self._control.sub(marked, part) for part in parts])
            for role, parts in messages
        ]
        text, *rest = self._marked.split(self._rendered(turns))
        ids = self._encode(text)
        for number, text in zip(rest[::2], rest[1::2], strict=True):
            plain = self._plain.encode(typed[int(number)], add_special_tokens=False).ids
            ids += [token for token in plain if token not in self._control_ids]
            ids += self._encode(text)
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _rendered(self, turns: Sequence[Turn]) -> str:
        messages = [{"role": role, "content": self._content(parts)} for role, parts in turns]
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's chat template does not take these messages: {error}") from None

    def _content(self, parts: Sequence[str | None]) -> str | list[dict[str, str]]:
        """Templates that know parts are given them; for others vLLM puts images before a message's text."""
        if self._is_string:
            images = [self._image_text for part in parts if part is None]
            return "\n".join([*images, *(part for part in parts if part is not None)])
        return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]

    def image_tokens(self, grid: Grid) -> int:
        """See ``Prompts``; marks of tiles are counted, too."""
        return grid[0] * grid[1]

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """As many ids as the model reads; which ones, only vLLM's processor knows."""
        self._check_count(ids, grids)
        left = iter(grids)
        repeats = [self.image_tokens(next(left)) if token == self.image_id else 1 for token in ids]
        return [token for token, times in zip(ids, repeats, strict=True) for _ in range(times)]

    def num_expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        """See ``Prompts``."""
        self._check_count(ids, grids)
        return len(ids) + sum(self.image_tokens(grid) - 1 for grid in grids)

    def _check_count(self, ids: Sequence[int], grids: Sequence[Grid]) -> None:
        if (count := list(ids).count(self.image_id)) != len(grids):
            raise ValueError(f"prompt has {count} images and {len(grids)} grids were given; give one grid per image")


def read_prompts(variant: Variant) -> FolderPrompts:
    """The prompts of a variant's folder."""
    assert variant.weights is not None, "resolved from a folder"
    return FolderPrompts(variant.weights, variant.config)
