"""One attack on a batch of pictures, an iteration at a time.

A picture whose answer has reached the cap is left alone: it cannot get longer. Every length is that of the picture as a
file of 8 bits holds it, asked for in the served way.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loadtest.adversarial.blackbox import ascent
from loadtest.adversarial.evading import JustUnder
from loadtest.adversarial.objectives import Objective
from loadtest.adversarial.perturbation import as_pixels, quantised
from loadtest.adversarial.purifier import Purification, copies
from loadtest.adversarial.recipes import Recipe
from loadtest.adversarial.state import State
from loadtest.adversarial.victim import Answer, Pictures, Sampling, Victim

TOP_P = 0.9
PASS = 4
"""Pictures of one pass with gradients."""
LOOKS = 2
"""Purified copies that a length is measured by beside the picture."""
_PRIME = 1_000_003
"""Keeps the seeds of iterations apart."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """``clean``: (B, H, W, 3), with a ``prompts`` each. ``max_tokens``: the cap of every answer. ``every``: iterations
    between two looks at what comes out; the published code looks after each. ``goals``: tokens that the answers are not
    to exceed, one for each picture; None: the longer the better."""

    victim: Victim
    recipe: Recipe
    clean: Pictures
    prompts: Sequence[Sequence[int]]
    seed: int = 0
    max_tokens: int = 512
    every: int = 1
    goals: Sequence[int] | None = None

    @property
    def label(self) -> str:
        """The same for attacks that may go on from one another's state."""
        pictures = zlib.crc32(self.clean.tobytes(), zlib.crc32(repr([list(one) for one in self.prompts]).encode()))
        names = (self.victim.weights[:16], self.recipe.label, f"seed {self.seed}", f"cap {self.max_tokens}")
        goals = () if self.goals is None else (f"goals {list(self.goals)}",)
        return ", ".join((*names, f"every {self.every}", *goals, f"pictures {pictures:08x}"))

    def begin(self) -> State:
        """Nothing done yet but to ask for ordinary answers."""
        started = time.process_time()
        ordinary = self._ask(self.clean, range(len(self.clean)))
        pixels = as_pixels(self.clean)
        theta = self.recipe.space.start(self.recipe.start, pixels, self.seed)
        return State(
            label=self.label,
            theta=theta,
            momentum=torch.zeros_like(theta),
            ordinary=ordinary,
            last=list(ordinary),
            best=self.clean.copy(),
            best_length=[-1.0] * len(self.clean),
            weights=[[] for _ in self.clean],
            num_queries=len(self.clean),
            cpu_s=time.process_time() - started,
        )

    def advance(self, state: State, num_iterations: int) -> bool:
        """One iteration of ``num_iterations``, in place; False where nothing is left to do. A control has none, and is
        measured once."""
        rows = self._open_rows(state)
        if not rows or state.iteration >= (1 if self.recipe.is_control else num_iterations):
            return False
        started = time.process_time()
        if not self.recipe.is_control:
            gradient, losses = self._ascent(state, rows) if self.recipe.score else self._gradient(state, rows)
            self._step(state, gradient, rows)
            by_row = dict(zip(rows, losses, strict=True))
            state.losses.append([by_row.get(row) for row in range(len(self.clean))])
        state.iteration += 1
        if self.recipe.is_control or state.iteration % self.every == 0 or state.iteration == num_iterations:
            self._look(state, rows)
        state.cpu_s += time.process_time() - started
        return True

    def _open_rows(self, state: State) -> list[int]:
        everything = list(range(len(self.clean)))
        below = [row for row in everything if state.best_length[row] < self.max_tokens]
        if self.recipe.space.is_shared:
            return everything if below else []
        return everything if self.recipe.counts_words else below  # of words, no number is the cap

    # -- ways down ---------------------------------------------------------------------------------------------------

    def _gradient(self, state: State, rows: Sequence[int]) -> tuple[Tensor, list[float]]:
        """Of the objective's sum over ``rows``, and each one's loss. Texts of like lengths go together, for the shorter
        ones of a pass are padded to the longest."""
        assert self.recipe.make is not None
        objective: Objective = self.recipe.make(self.victim, state.ordinary)
        of_row = {row: self._under(objective, row) for row in rows}
        texts = state.ordinary if self.recipe.keeps_text else state.last
        forced = {row: of_row[row].forced(texts[row]) for row in rows}
        by_length = sorted(rows, key=lambda row: len(forced[row]))
        gradient, losses = torch.zeros_like(state.theta), dict.fromkeys(rows, 0.0)
        for first in range(0, len(rows), PASS):
            some = by_length[first : first + PASS]
            leaf = state.theta.clone().requires_grad_()
            pixels = self.recipe.space.pixels(as_pixels(self.clean), leaf)[some]
            seed = self.seed + _PRIME * (state.iteration + 1) + first
            for seen in (pixels, *copies(pixels, self.recipe.num_draws, seed)):
                traces = self.victim.trace(seen, [self.prompts[row] for row in some], [forced[row] for row in some])
                total = torch.zeros(())
                for row, trace in zip(some, traces, strict=True):
                    loss, state.weights[row] = of_row[row].loss(trace, state.weights[row], state.iteration)
                    total, losses[row] = total + loss, losses[row] + float(loss.detach())
                gradient += torch.autograd.grad(total, leaf, retain_graph=True)[0]
            if self.recipe.avoids is not None:
                _add_avoidance(gradient, self.recipe.avoids(self.victim, pixels), leaf, some, self.recipe.avoid_weight)
        return gradient, [losses[row] / (1 + self.recipe.num_draws) for row in rows]

    def _under(self, objective: Objective, row: int) -> Objective:
        """The objective of one picture, that ends at its goal if it has one."""
        if self.goals is None:
            return objective
        return JustUnder(base=objective, goal=self.goals[row], end_id=self.victim.end_id)

    def _ascent(self, state: State, rows: Sequence[int]) -> tuple[Tensor, list[float]]:
        """The estimate of a black box, of minus its score; what it asked for counts where it is the longest so far."""
        assert self.recipe.score is not None
        seed = self.seed + _PRIME * (state.iteration + 1)
        clean = as_pixels(self.clean)
        estimates, scores, asked, answers = ascent(
            self._ask, self.recipe.score, self.recipe.space, clean, state.theta, rows, seed
        )
        gradient = torch.zeros_like(state.theta)
        gradient[list(rows)] = -estimates
        for row, pictures, answered in zip(rows, asked, answers, strict=True):
            state.num_queries += len(answered)
            longest = max(range(len(answered)), key=lambda i: answered[i].num_tokens)
            self._keep(state, row, pictures[longest], float(answered[longest].num_tokens))
        return gradient, [-score for score in scores]

    def _step(self, state: State, gradient: Tensor, rows: Sequence[int]) -> None:
        """Against the sign of the gradient, or of its momentum, and back into the space."""
        if mu := self.recipe.gradient_momentum:
            size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True) + 1e-8
            gradient = mu * state.momentum + gradient / size
        moved = state.theta - self.recipe.step * gradient.sign()
        projected = self.recipe.space.project(as_pixels(self.clean), moved)
        if self.recipe.space.is_shared:
            state.theta, state.momentum = projected, gradient
        else:
            index = list(rows)
            state.theta[index], state.momentum[index] = projected[index], gradient[index]

    # -- what comes out ----------------------------------------------------------------------------------------------

    def _look(self, state: State, rows: Sequence[int]) -> None:
        pixels = self.recipe.space.pixels(as_pixels(self.clean), state.theta)
        pictures = quantised(pixels)
        lengths = list(state.best_length)
        for row, length in self._measure(state, pictures, rows).items():
            lengths[row] = length
            if not self.recipe.space.is_shared:
                self._keep(state, row, pictures[row], length)
        if self.recipe.space.is_shared and sum(lengths) > sum(state.best_length):
            state.best, state.best_length = pictures, list(lengths)
        state.lengths.append((state.iteration, lengths))

    def _keep(self, state: State, row: int, picture: Pictures, length: float) -> None:
        if self.goals is not None and length > self.goals[row]:
            return
        if length > state.best_length[row]:
            state.best[row], state.best_length[row] = picture, length

    def _measure(self, state: State, pictures: Pictures, rows: Sequence[int]) -> dict[int, float]:
        """Length of each row's answer in the attack's own measure, the mean of all answers that it asks for; the
        longest of them is what comes next."""
        draws = max(1, self.recipe.num_samples)
        seeds = [self.seed + _PRIME * state.iteration + draw for draw in range(draws)]
        shown = [pictures[list(rows)], *self._purified(pictures[list(rows)], seeds[0])]
        drawn = [
            self._ask(shown_once, rows, Sampling(TOP_P, seed) if self.recipe.num_samples else None)
            for shown_once in shown
            for seed in seeds
        ]
        state.num_queries += len(drawn) * len(rows)
        lengths = {}
        for place, row in enumerate(rows):
            answers = [one[place] for one in drawn]
            sizes = [self._size(answer) for answer in answers]
            state.last[row] = answers[sizes.index(max(sizes))]
            lengths[row] = sum(sizes) / len(sizes)
        return lengths

    def _purified(self, pictures: Pictures, seed: int) -> list[Pictures]:
        """Copies that lengths are also measured by; other draws than those of the gradients."""
        draw = random.Random(-seed)
        height, width = pictures.shape[1:3]
        return [
            np.stack([Purification.drawn(height, width, draw).bytes_of(picture) for picture in pictures])
            for _ in range(min(LOOKS, self.recipe.num_draws))
        ]

    def _size(self, answer: Answer) -> float:
        if not self.recipe.counts_words:
            return float(answer.num_tokens)
        return float(len(self.victim.prompts.decode(answer.tokens).split(" ")))

    def _ask(self, pictures: Pictures, rows: Sequence[int], sampling: Sampling | None = None) -> list[Answer]:
        prompts = [self.prompts[row] for row in rows]
        return self.victim.answer(pictures, prompts, max_tokens=self.max_tokens, sampling=sampling)


def _add_avoidance(gradient: Tensor, scores: Tensor, leaf: Tensor, rows: Sequence[int], weight: float) -> None:
    """Add the scores' gradient to that of the loss, in place, each picture's at ``weight`` times the mean size that the
    loss's has: what is small in nats may still be steep."""
    (away,) = torch.autograd.grad(scores.sum(), leaf)
    for row in rows:
        size = gradient[row].abs().mean() / (away[row].abs().mean() + 1e-12)
        gradient[row] += weight * size * away[row]
