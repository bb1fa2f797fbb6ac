"""Every attack on a chat's pictures by its name: what it descends, where it may go, and how it measures itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType

from loadtest.adversarial import objectives
from loadtest.adversarial.blackbox import Score
from loadtest.adversarial.objectives import Make
from loadtest.adversarial.perturbation import EPS, Additive, Patch, Space, Start

STEP = 1 / 255


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One attack.

    ``make``: its objective, of an attacker with weights; ``score``: of one without. Neither: a control, which is not
    optimised. ``step``: of a pixel, each iteration, by the sign. ``gradient_momentum``: 0 for the plain sign.
    ``num_samples``: answers drawn (nucleus 0.9, temperature 1) to measure a picture by; 0: one greedy answer.
    ``counts_words``: length in words parted by spaces, else in tokens. ``keeps_text``: passes are made of the ordinary
    answer throughout, else of the last one.
    """

    summary: str
    make: Make | None = None
    score: Score | None = None
    space: Space = Additive(EPS)  # noqa: RUF009 (frozen)
    start: Start = "uniform"
    step: float = STEP
    gradient_momentum: float = 0.0
    num_samples: int = 0
    counts_words: bool = False
    keeps_text: bool = False

    @property
    def is_control(self) -> bool:
        """Not optimised."""
        return self.make is None and self.score is None

    @property
    def objective(self) -> str:
        """By its name: what is descended."""
        if self.make is not None:
            return self.make.__name__
        return "none" if self.score is None else str(self.score)

    @property
    def label(self) -> str:
        """Everything that decides where it goes."""
        others = [f"{one.name} {getattr(self, one.name)}" for one in fields(self) if one.name not in _NAMED_OTHERWISE]
        return ", ".join([f"objective {self.objective}", *others])


_NAMED_OTHERWISE = {"summary", "make", "score"}


RECIPES: MappingProxyType[str, Recipe] = MappingProxyType(
    {
        "verbose-released": Recipe(
            summary="Verbose Images as its code runs",
            make=objectives.verbose_released,
            start="normal",
            num_samples=3,
            counts_words=True,
        ),
        "verbose-strengthened": Recipe(
            summary="Verbose Images over the whole answer, KL as in the paper, tokens",
            make=objectives.verbose_strengthened,
        ),
        "delayed-eos": Recipe(summary="the end alone, delayed", make=objectives.delayed_end, gradient_momentum=0.9),
        "lingoloop": Recipe(
            summary="LingoLoop-style: the end by kinds of tokens, small hidden states",
            make=objectives.lingoloop,
            start="zero",
            gradient_momentum=0.9,
        ),
        "special-tail": Recipe(
            summary="Hidden Tail-style: the answer, then special tokens",
            make=objectives.special_tail,
            gradient_momentum=0.9,
            keeps_text=True,
        ),
        "universal-patch": Recipe(
            summary="one patch of 32 x 32 pixels on every picture",
            make=objectives.delayed_end,
            space=Patch(32),
            step=4 / 255,
            gradient_momentum=0.9,
        ),
        "nes-probabilities": Recipe(
            summary="black box, with the probabilities of tokens (VLMInferSlow-style)",
            score=Score(uses_probabilities=True),
            start="zero",
            step=2 / 255,
        ),
        "nes-lengths": Recipe(
            summary="black box, with lengths alone",
            score=Score(uses_probabilities=False),
            start="zero",
            step=2 / 255,
        ),
        "noise": Recipe(summary="control: every pixel up or down by the bound", start="signs"),
        "random-pictures": Recipe(summary="control: pictures of noise", space=Additive(1.0), start="random"),
    }
)
