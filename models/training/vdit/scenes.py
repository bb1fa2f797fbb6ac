"""What a training clip shows, as data, and the sentence that says so.

A scene has one or two objects; each has a colour, a shape, a direction and a speed. Words and ids are fixed for good:
the nano checkpoint's vocabulary is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = ("left", "right", "up", "down")
SPEEDS = ("slowly", "fast")
BACKGROUNDS = ("black", "gray", "brown")

PIXELS_PER_FRAME = {"slowly": 0.6, "fast": 1.2}
"""Of 64; 29 frames at 8 a second are 17 and 34 pixels."""


@dataclass(frozen=True, slots=True)
class Mover:
    """One object."""

    colour: str
    shape: str
    direction: str
    speed: str = "slowly"

    @property
    def combination(self) -> tuple[str, str, str]:
        """What the held-out rule looks at."""
        return self.colour, self.shape, self.direction

    def sentence(self) -> str:
        """Its part of the prompt."""
        return f"a {self.colour} {self.shape} moves {self.direction} {self.speed}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two objects before a plain background."""

    movers: tuple[Mover, ...]
    background: str = "black"

    def prompt(self) -> str:
        """The sentence that describes it, in full."""
        objects = " and ".join(mover.sentence() for mover in self.movers)
        return f"{objects} on a {self.background} background"

    @property
    def is_held_out(self) -> bool:
        """Whether any of its objects is one that training never shows."""
        return any(is_held_out(mover.combination) for mover in self.movers)


def is_held_out(combination: tuple[str, str, str]) -> bool:
    """One in eight of colour x shape x direction, spread evenly: every pair of words occurs in training."""
    colour, shape, direction = combination
    return (COLOURS.index(colour) + 2 * SHAPES.index(shape) + 3 * DIRECTIONS.index(direction)) % 8 == 1


def held_out_combinations() -> Iterator[tuple[str, str, str]]:
    """All that training never shows."""
    return (one for one in product(COLOURS, SHAPES, DIRECTIONS) if is_held_out(one))


def sample_scene(rng: np.random.Generator, *, two: float = 0.15, held_out: bool = False) -> Scene:
    """A random scene: of training, or with one object of a held-out combination.

    ``two``: share of scenes with two objects.
    """
    movers = [_sample_mover(rng, held_out)]
    if rng.random() < two:
        other = _sample_mover(rng, False)
        while (other.colour, other.shape) == (movers[0].colour, movers[0].shape):
            other = _sample_mover(rng, False)
        movers.append(other)
    return Scene(tuple(movers), str(rng.choice(BACKGROUNDS)))


def _sample_mover(rng: np.random.Generator, held_out: bool) -> Mover:
    while True:
        combination = (str(rng.choice(COLOURS)), str(rng.choice(SHAPES)), str(rng.choice(DIRECTIONS)))
        if is_held_out(combination) == held_out:
            return Mover(*combination, str(rng.choice(SPEEDS)))


def vocabulary() -> tuple[str, ...]:
    """Every word that a prompt may have, in a fixed order."""
    return ("a", "and", "moves", "on", "background", *COLOURS, *SHAPES, *DIRECTIONS, *SPEEDS, *BACKGROUNDS)
