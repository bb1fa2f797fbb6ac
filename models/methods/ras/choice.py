"""Which tokens one clip or picture runs in a step. Legend: L tokens, l active tokens, P values of a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from models.methods.ras.config import RasConfig


class RasChoice:
    """How long each token was left out. Branches of guidance share one choice."""

    def __init__(self, config: RasConfig, num_steps: int) -> None:
        self.config = config
        self._num_steps = num_steps
        self.skips: Tensor | None = None

    def choose(self, step: int, guided: Tensor | None) -> Tensor | None:
        """Indices of the tokens to run in this step, ascending (l,). None: all of them; always where nothing is kept
        yet. ``guided``: the last output after guidance (L, P)."""
        if guided is None or self.skips is None or self.config.is_dense(step, self._num_steps):
            return None
        importance = importances(guided, self.skips, self.config)
        return importance.topk(self.config.num_active(len(importance))).indices.sort().values

    def ran(self, active: Tensor | None, output: Tensor) -> None:
        """Count a step that ran the ``active`` tokens, or all of them; ``output`` (B, L, P) tells how many those are,
        and where."""
        if active is None:
            self.skips = torch.zeros(output.shape[1], device=output.device)
            return
        assert self.skips is not None, "a dense step comes first"
        self.skips += 1
        self.skips[active] = 0


def importances(output: Tensor, skips: Tensor, config: RasConfig) -> Tensor:
    """(L,) of the last output (L, P) and how many steps in a row each token was left out (L,)."""
    spread = output.float().std(dim=-1, correction=0)
    return torch.exp(config.starvation_scale * skips) / (spread + config.epsilon)


def guided_output(without: Tensor, prompted: Tensor, scale: float) -> Tensor:
    """Of outputs without the prompt and with it, what the sampler is given."""
    return without + scale * (prompted - without)
