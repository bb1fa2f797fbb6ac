"""Every attack on a chat's pictures by its name: what it descends, where it may go, and how it measures itself."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from types import MappingProxyType
from typing import Any

from loadtest.adversarial import evading, objectives
from loadtest.adversarial.blackbox import Score
from loadtest.adversarial.evading import PixelScore
from loadtest.adversarial.objectives import Make
from loadtest.adversarial.perturbation import EPS, Additive, Patch, Space, Start
from loadtest.adversarial.screening import screen_score

STEP = 1 / 255
_KNOWS = "knows the guard:"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One attack.

    ``make``: its objective, of an attacker with weights; ``score``: of one without. Neither: a control, which is not
    optimised. ``step``: of a pixel, each iteration, by the sign. ``gradient_momentum``: 0 for the plain sign.
    ``num_samples``: answers drawn (nucleus 0.9, temperature 1) to measure a picture by; 0: one greedy answer.
    ``counts_words``: length in words parted by spaces, else in tokens. ``keeps_text``: passes are made of the ordinary
    answer throughout, else of the last one.

    Of attackers who know the guard: ``num_draws``: purified copies beside the picture itself, over all of which each
    gradient and each length is a mean. ``avoids``: a score of pixels that is lowered, ``avoid_weight`` times as
    strongly as the loss. ``stays_under``: no longer than the guard's bound for the text.
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
    num_draws: int = 0
    avoids: PixelScore | None = None
    avoid_weight: float = 0.0
    stays_under: bool = False

    @property
    def is_control(self) -> bool:
        """Not optimised."""
        return self.make is None and self.score is None

    @property
    def knows_guard(self) -> bool:
        """Made against one of its layers."""
        return self.summary.startswith(_KNOWS)

    @property
    def objective(self) -> str:
        """By its name: what is descended."""
        if self.make is not None:
            return self.make.__name__
        return "none" if self.score is None else str(self.score)

    @property
    def label(self) -> str:
        """Everything that decides where it goes. What a recipe leaves out is not named, so that a run goes on where
        recipes have learnt something new."""
        others = [f"{name} {getattr(self, name)}" for name in _ALWAYS_NAMED]
        known = [f"{one.name} {_name(getattr(self, one.name))}" for one in fields(self) if self._is_known(one)]
        return ", ".join([f"objective {self.objective}", *others, *known])

    def _is_known(self, one: Field[Any]) -> bool:
        return one.name in _OF_GUARD and getattr(self, one.name) != one.default


_ALWAYS_NAMED = ("space", "start", "step", "gradient_momentum", "num_samples", "counts_words", "keeps_text")
_OF_GUARD = ("num_draws", "avoids", "avoid_weight", "stays_under")


def _name(value: object) -> str:
    return str(getattr(value, "__name__", value))


def _delayed(summary: str, **changes: Any) -> Recipe:
    """``delayed-eos`` by an attacker who knows the guard."""
    return Recipe(
        summary=f"{_KNOWS} {summary}", **{"make": objectives.delayed_end, "gradient_momentum": 0.9, **changes}
    )


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
            summary="Verbose Images over all of the answer, in tokens",
            make=objectives.verbose_strengthened,
        ),
        "delayed-eos": Recipe(summary="the end alone, delayed", make=objectives.delayed_end, gradient_momentum=0.9),
        "lingoloop": Recipe(
            summary="LingoLoop-style: the end by kinds of tokens",
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
            summary="black box, with probabilities (VLMInferSlow-style)",
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
        **{
            f"delayed-eos-cusum-{weight:g}": _delayed(
                f"end kept likely, weight {weight:g}", make=evading.end_unseen(weight)
            )
            for weight in (0.1, 0.3, 0.8)
        },
        **{
            f"delayed-eos-squeeze-{weight:g}": _delayed(
                f"embedding kept still, weight {weight:g}", avoids=evading.squeeze_score, avoid_weight=weight
            )
            for weight in (0.3, 1.0, 3.0)
        },
        **{
            f"delayed-eos-screen-{weight:g}": _delayed(
                f"pre-screen's score, weight {weight:g}", avoids=screen_score, avoid_weight=weight
            )
            for weight in (0.3, 1.0, 3.0)
        },
        "delayed-eos-purified": _delayed("EOT over purified copies", num_draws=4),
        "delayed-eos-both": _delayed("EOT, and the end kept likely", make=evading.end_unseen(0.3), num_draws=4),
        "delayed-eos-under": _delayed("just under the bound of its text", stays_under=True),
        "delayed-eos-unbounded": Recipe(
            summary="control: the end alone, pixels without a bound",
            make=objectives.delayed_end,
            space=Additive(1.0),
            step=4 / 255,
            gradient_momentum=0.9,
        ),
        "noise": Recipe(summary="control: every pixel up or down by the bound", start="signs"),
        "random-pictures": Recipe(summary="control: pictures of noise", space=Additive(1.0), start="random"),
    }
)
BASIC = tuple(name for name, recipe in RECIPES.items() if not recipe.knows_guard)
"""What knows nothing of a guard, and controls."""
KNOWING = tuple(name for name, recipe in RECIPES.items() if recipe.knows_guard)
