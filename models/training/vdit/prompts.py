"""From a prompt back to the scene that it asks for: what the judge has to look for."""

from __future__ import annotations

import re

from models.training.vdit.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SPEEDS, Mover, Scene

MOST_OBJECTS = 2
_MOVER = re.compile(
    rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) moves ({'|'.join(DIRECTIONS)})(?: ({'|'.join(SPEEDS)}))?"
)
_BACKGROUND = re.compile(rf" on an? ({'|'.join(BACKGROUNDS)}) background$")


def parse_prompt(prompt: str) -> Scene:
    """Read a sentence of ``Scene.prompt``; speed and background may be left out, and are then slow and black.

    Raises: ValueError: not such a sentence.
    """
    text = " ".join(prompt.lower().split()).rstrip(".")
    found = _BACKGROUND.search(text)
    objects = (text[: found.start()] if found else text).split(" and ")
    matches = [_MOVER.fullmatch(part) for part in objects]
    if len(matches) > MOST_OBJECTS or not all(matches):
        raise ValueError(
            f"cannot read {prompt!r}; write at most {MOST_OBJECTS} objects, as in "
            "'a red circle moves left slowly and a green square moves up fast on a black background'"
        )
    movers = tuple(Mover(*match.groups(default=SPEEDS[0])) for match in matches if match)
    return Scene(movers, found.group(1) if found else BACKGROUNDS[0])
