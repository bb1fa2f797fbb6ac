"""What one request keeps between the steps of region-adaptive sampling.

Legend: R rows (branches of guidance: unconditional first, or one), L tokens, N heads, D head dim, P values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.methods.ras.config import RasConfig


class RasState:
    """Keys and values of all tokens in every layer, the last output of every token, and how long each was left out.

    All rows share one choice of tokens. Made for one request; ``release`` frees it.
    """

    def __init__(self, config: RasConfig, *, num_steps: int, guidance_scale: float = 1.0) -> None:
        self.config = config
        self._num_steps = num_steps
        self._guidance_scale = guidance_scale
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._output: Tensor | None = None
        self._skips: Tensor | None = None

    def choose(self, step: int) -> Tensor | None:
        """Indices of the tokens to run in this step, ascending (l,). None: all of them; always where nothing is kept
        yet, as at the beginning or after a resume."""
        if self._output is None or self._skips is None or self.config.is_dense(step, self._num_steps):
            return None
        importance = importances(self._combined(self._output), self._skips, self.config)
        return importance.topk(self.config.num_active(len(importance))).indices.sort().values

    def keep(self, layer: int, keys: Tensor, values: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take keys and values (R, l, N, D) of the active tokens; give those of all tokens (R, L, N, D)."""
        if active is None:
            # Copies: a view of a batch would keep all of it.
            self._keys[layer], self._values[layer] = _own(keys), _own(values)
        else:
            self._keys[layer].index_copy_(1, active, keys)
            self._values[layer].index_copy_(1, active, values)
        return self._keys[layer], self._values[layer]

    def finish(self, output: Tensor, active: Tensor | None) -> Tensor:
        """Take the output (R, l, P) of the active tokens; give that of all (R, L, P), old where a token was not run."""
        if active is None:
            self._output = _own(output)
            self._skips = torch.zeros(output.shape[1], device=output.device)
            return self._output
        assert self._output is not None, "a dense step comes first"
        assert self._skips is not None
        self._output.index_copy_(1, active, output)
        self._skips += 1
        self._skips[active] = 0
        return self._output

    def _combined(self, output: Tensor) -> Tensor:
        """(L, P) after guidance."""
        if len(output) == 1:
            return output[0]
        return output[0] + self._guidance_scale * (output[1] - output[0])

    @property
    def state_bytes(self) -> int:
        """Bytes of the tensors held now."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        single = [tensor for tensor in (self._output, self._skips) if tensor is not None]
        return [*self._keys.values(), *self._values.values(), *single]

    def release(self) -> None:
        """Forget everything; the next step is dense."""
        self._keys, self._values = {}, {}
        self._output = self._skips = None


def importances(output: Tensor, skips: Tensor, config: RasConfig) -> Tensor:
    """(L,) of the last output (L, P) and how many steps in a row each token was left out (L,)."""
    spread = output.float().std(dim=-1, correction=0)
    return torch.exp(config.starvation_scale * skips) / (spread + config.epsilon)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
