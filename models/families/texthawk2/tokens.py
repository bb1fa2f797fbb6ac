"""Names of the special tokens, boxes as text, and the chat template: what tokenizer, prompt and processor agree on.

A box is exactly seven tokens, ``<box><012><034><,><567><789></box>``: left, top, then right, bottom, in thousandths of
the image's width and height. The comma is a token of its own: no digit or comma of ordinary text is involved.

*Control* tokens steer the model; text from a user must never become one (``prompt.py``). *Box* tokens are
ordinary words that users may type ("What is in <box>...</box>?") and read in answers, so they are not "special" in the
tokenizer's sense: decoding with ``skip_special_tokens`` keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
IMAGE = "<image>"
VISION_START = "<vision_start>"
VISION_END = "<vision_end>"
BOX_START = "<box>"
BOX_END = "</box>"
BOX_COMMA = "<,>"
NUM_COORDINATES = 1000

CONTROL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, IMAGE, VISION_START, VISION_END)
COORDINATE_TOKENS = tuple(f"<{value:03d}>" for value in range(NUM_COORDINATES))
BOX_TOKENS = (BOX_START, BOX_END, BOX_COMMA, *COORDINATE_TOKENS)

ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('role must be system, user or assistant') -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- elif part['type'] in ['image', 'image_url'] -%}{{- '<image>' -}}"
    "{%- else -%}{{- raise_exception('content must be text or images') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""Qwen2's ChatML without its default system prompt; an image in a list of parts becomes ``<image>``."""

Box = tuple[int, int, int, int]
BOX_PATTERN = re.compile(r"<box><(\d{3})><(\d{3})><,><(\d{3})><(\d{3})></box>")


def special_tokens() -> list[str]:
    """Every added token, in the order of their ids."""
    return [*CONTROL_TOKENS, *BOX_TOKENS]


def box_text(box: Sequence[int]) -> str:
    """Write (left, top, right, bottom), each 0 to 999, as seven tokens.

    Raises:
        ValueError: not four numbers in range, or left over right, or top over bottom.
    """
    if len(box) != 4 or any(not 0 <= value < NUM_COORDINATES for value in box):
        raise ValueError(f"box {tuple(box)} must be four whole numbers from 0 to {NUM_COORDINATES - 1}; scale them")
    left, top, right, bottom = box
    if left > right or top > bottom:
        raise ValueError(f"box {tuple(box)} must be left, top, right, bottom; sort its corners")
    return f"{BOX_START}<{left:03d}><{top:03d}>{BOX_COMMA}<{right:03d}><{bottom:03d}>{BOX_END}"


def find_boxes(text: str) -> list[Box]:
    """Every well-formed box in a text, in order; a model may write corners in any order, so that is not checked."""
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in BOX_PATTERN.findall(text)]
