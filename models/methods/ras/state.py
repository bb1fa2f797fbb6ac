"""What one request keeps between the steps of region-adaptive sampling, if its rows are the branches of guidance.

Legend: R rows (branches of guidance: unconditional first, or one), L tokens, N heads, D head dim, P values of a patch.
"""

from __future__ import annotations

from torch import Tensor

from models.methods.ras.cache import TokenCache
from models.methods.ras.choice import RasChoice, guided_output
from models.methods.ras.config import RasConfig


class RasState:
    """A cache of all tokens, and one choice of tokens for all rows. Made for one request; ``release`` frees it."""

    def __init__(self, config: RasConfig, *, num_steps: int, guidance_scale: float = 1.0) -> None:
        self._guidance_scale = guidance_scale
        self._choice = RasChoice(config, num_steps)
        self.cache = TokenCache()

    def choose(self, step: int) -> Tensor | None:
        """Indices of the tokens to run in this step, ascending (l,). None: all of them; always where nothing is kept
        yet, as at the beginning or after a resume."""
        return self._choice.choose(step, self._guided())

    def finish(self, output: Tensor, active: Tensor | None) -> Tensor:
        """Take the output (R, l, P) of the active tokens; give that of all (R, L, P), old where a token was not run."""
        whole = self.cache.finish(output, active)
        self._choice.ran(active, whole)
        return whole

    def _guided(self) -> Tensor | None:
        """(L, P) after guidance."""
        output = self.cache.output
        if output is None or len(output) == 1:
            return None if output is None else output[0]
        return guided_output(output[0], output[1], self._guidance_scale)

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensors held now."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        skips = self._choice.skips
        return [*self.cache.tensors(), *([] if skips is None else [skips])]

    def release(self) -> None:
        """Forget everything; the next step is dense."""
        self.cache, self._choice.skips = TokenCache(), None
