"""What calls of a network with the same rows keep of all their tokens.

Legend: R rows, L tokens, l active tokens, N heads, D head dim, P values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TokenCache:
    """Keys and values of all tokens in every layer, and the last output of every token."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self.output: Tensor | None = None

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
        """Take the output (R, l, P) of the active tokens; give that of all (R, L, P), old where a token was not run.
        What is given is kept, and changed by the next call."""
        if active is None:
            self.output = _own(output)
        else:
            assert self.output is not None, "a dense step comes first"
            self.output.index_copy_(1, active, output)
        return self.output

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        return [*self._keys.values(), *self._values.values(), *([] if self.output is None else [self.output])]


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
