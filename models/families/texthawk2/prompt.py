"""From a conversation to token ids, with only the ``tokenizers`` library: what the server runs on every request.

Text from users can never become a control token: ``<|im_end|>`` or ``<image>`` that somebody types is encoded as the
bytes that it consists of. Box and coordinate tokens stay what they are, unless told otherwise. On text without control
tokens the ids are those of the Hugging Face tokenizer's ``apply_chat_template``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from models.contract import Grid, Turn, Variant
from models.families.texthawk2.tiling import TOKENS_PER_TILE, image_tokens
from models.families.texthawk2.tokens import (
    BOX_TOKENS,
    CHAT_TEMPLATE,
    CONTROL_TOKENS,
    END_OF_TEXT,
    IMAGE,
    ROLES,
    TURN_END,
    TURN_START,
    VISION_END,
    VISION_START,
)


class PromptBuilder:
    """Token ids of conversations. Immutable after construction, so threads may share one.

    ``image_id``, ``vision_start_id``, ``vision_end_id``, ``end_of_turn_id`` and ``end_of_text_id`` are the ids of the
    tokens named in ``models.families.texthawk2.tokens``.
    """

    def __init__(self, tokenizer: Tokenizer, tokens_per_tile: int = TOKENS_PER_TILE) -> None:
        """Copy ``tokenizer``; the one that is passed stays as it is.

        Raises:
            ValueError: a token of the model is missing, or is of the wrong kind.
        """
        raw = json.loads(tokenizer.to_str())
        _check_added_tokens(raw["added_tokens"])
        self._decoder = Tokenizer.from_str(json.dumps(raw))
        self._with_boxes = Tokenizer.from_str(json.dumps(raw))
        self._with_boxes.encode_special_tokens = True  # spell control tokens out when they occur in text
        self._plain = Tokenizer.from_str(json.dumps(raw | {"added_tokens": []}))
        self._tokens_per_tile = tokens_per_tile
        self._ids: dict[str, int] = {token: _id_of(self._decoder, token) for token in CONTROL_TOKENS}
        self.image_id = self._ids[IMAGE]
        self.vision_start_id = self._ids[VISION_START]
        self.vision_end_id = self._ids[VISION_END]
        self.end_of_turn_id = self._ids[TURN_END]
        self.end_of_text_id = self._ids[END_OF_TEXT]

    @classmethod
    def from_dir(cls, model_dir: str | Path, tokens_per_tile: int = TOKENS_PER_TILE) -> PromptBuilder:
        """Read ``tokenizer.json`` of a model folder.

        Raises:
            ValueError: there is none, it is not TextHawk2's, or the folder's chat template is another one than ours.
        """
        file = Path(model_dir) / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"{file} does not exist; save the model's tokenizer there")
        template = Path(model_dir) / "chat_template.jinja"
        if template.is_file() and template.read_text(encoding="utf-8") != CHAT_TEMPLATE:
            raise ValueError(f"{template} is not the template that this code renders; convert the model again")
        return cls(Tokenizer.from_file(str(file)), tokens_per_tile)

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return self._decoder.get_vocab_size()

    def encode_untrusted(self, text: str, *, allow_boxes: bool = True) -> list[int]:
        """Encode what somebody typed: never a control token; box tokens only if ``allow_boxes``."""
        tokenizer = self._with_boxes if allow_boxes else self._plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    def build(
        self, messages: Iterable[Turn], *, add_generation_prompt: bool = True, allow_boxes: bool = True
    ) -> list[int]:
        """Ids of a conversation, with one ``<image>`` per image, which is None among the parts of a message.

        Raises:
            ValueError: an unknown role.
        """
        ids: list[int] = []
        for role, parts in messages:
            if role not in ROLES:
                raise ValueError(f"role {role!r} is unknown; it must be one of {', '.join(ROLES)}")
            ids.append(self._ids[TURN_START])
            self._append_parts(ids, (f"{role}\n", *parts), allow_boxes)
            ids.append(self.end_of_turn_id)
            ids += self.encode_untrusted("\n")
        if add_generation_prompt:
            ids.append(self._ids[TURN_START])
            ids += self.encode_untrusted("assistant\n")
        return ids

    def _append_parts(self, ids: list[int], parts: Sequence[str | None], allow_boxes: bool) -> None:
        """Text that nothing separates is encoded in one piece, as the template's output would be."""
        text = ""
        for part in parts:
            if part is not None:
                text += part
                continue
            ids += self.encode_untrusted(text, allow_boxes=allow_boxes)
            ids.append(self.image_id)
            text = ""
        ids += self.encode_untrusted(text, allow_boxes=allow_boxes)

    def image_tokens(self, grid: Grid) -> int:
        """Tokens of one image, without the two that mark its begin and end."""
        return image_tokens(grid, self._tokens_per_tile)

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """Replace each ``<image>`` by begin, one ``<image>`` per token of its grid, end.

        Raises:
            ValueError: not as many images in ``ids`` as ``grids``.
        """
        self._check_count(ids, grids)
        remaining, expanded = iter(grids), list[int]()
        for token in ids:
            if token == self.image_id:
                middle = [token] * self.image_tokens(next(remaining))
                expanded += (self.vision_start_id, *middle, self.vision_end_id)
            else:
                expanded.append(token)
        return expanded

    def num_expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        """Length of ``expand(ids, grids)``: what counts against the context, and what usage reports.

        Raises:
            ValueError: as ``expand``.
        """
        self._check_count(ids, grids)
        return len(ids) + sum(self.image_tokens(grid) + 1 for grid in grids)

    def _check_count(self, ids: Sequence[int], grids: Sequence[Grid]) -> None:
        if (count := sum(token == self.image_id for token in ids)) != len(grids):
            raise ValueError(f"prompt has {count} images and {len(grids)} grids were given; give one grid per image")

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Text of ``ids``; box tokens are kept."""
        return self._decoder.decode(list(ids), skip_special_tokens=skip_control)


def read_prompts(variant: Variant) -> PromptBuilder:
    """The prompt builder of a variant's folder. Raises: ValueError: see ``PromptBuilder.from_dir``, or no folder."""
    if variant.weights is None:
        raise ValueError(f"{variant.id} has no folder with a tokenizer; convert a checkpoint")
    return PromptBuilder.from_dir(variant.weights, variant.io.tokens_per_tile)


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, "checked by _check_added_tokens"
    return number


def _check_added_tokens(added: list[dict[str, object]]) -> None:
    """``special`` decides what users may type, so a tokenizer that says it otherwise is not let in."""
    kinds = {token["content"]: token["special"] for token in added}
    for tokens, special in ((CONTROL_TOKENS, True), (BOX_TOKENS, False)):
        wrong = [token for token in tokens if kinds.get(token) is not special]
        if wrong:
            raise ValueError(
                f"tokenizer lacks {len(wrong)} tokens of TextHawk2 or has them as another kind, first {wrong[0]}; "
                "use one that add_texthawk_tokens has completed"
            )
    stray = [content for content, special in kinds.items() if not special and content not in BOX_TOKENS]
    if stray:
        raise ValueError(f"tokenizer has unknown added tokens that users could type, the first is {stray[0]}")
