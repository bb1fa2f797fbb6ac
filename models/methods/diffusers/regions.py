"""Region-adaptive sampling of one clip or picture, each of whose branches of guidance is a call of its own.

Which tokens are run, and what is kept of the others, is ``models.methods.ras``'s. Where a network takes them and gives
them back is what its ``_cp_plan`` says (see ``tokens``). Legend: L tokens, l active tokens, P values of a patch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.ras.attention import RasAttention
from models.methods.ras.cache import TokenCache
from models.methods.ras.choice import RasChoice, guided_output
from models.methods.ras.config import RasConfig


class Regions:
    """A cache of all tokens for each branch, and one choice of tokens a step, by what came of all branches before it.

    The first call runs every token. Calls are of one row.
    """

    def __init__(self, config: RasConfig, num_steps: int) -> None:
        self._choice = RasChoice(config, num_steps)
        self._caches: dict[int, TokenCache] = {}
        self._step: int | None = None
        self._active: Tensor | None = None
        self._is_counted = False

    def begin(self, step: int, guidance_scale: float) -> None:
        """A call in this step comes next; the first one chooses."""
        if step != self._step:
            self._active = self._choice.choose(step, self._guided(guidance_scale))
            self._step, self._is_counted = step, False

    def tokens(self, branch: int, num_tokens: int) -> ActiveTokens:
        """Those of the next call."""
        active = self._active if branch in self._caches else None
        cache = self._caches.setdefault(branch, TokenCache())
        return ActiveTokens(cache, active, num_tokens, self._count)

    @property
    def is_sparse(self) -> bool:
        """Whether the last step left tokens out."""
        return self._active is not None

    @property
    def num_active(self) -> int:
        """Tokens that the last step ran, where it left some out."""
        return 0 if self._active is None else len(self._active)

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        single = [tensor for tensor in (self._choice.skips, self._active) if tensor is not None]
        return [*(tensor for cache in self._caches.values() for tensor in cache.tensors()), *single]

    def _guided(self, scale: float) -> Tensor | None:
        """(L, P) of the last step. The first branch has the prompt, the second one none."""
        outputs = [cache.output[0] for cache in self._caches.values() if cache.output is not None]
        if len(outputs) < 2:
            return outputs[0] if outputs else None
        return guided_output(outputs[1], outputs[0], scale)

    def _count(self, active: Tensor | None, output: Tensor) -> None:
        if not self._is_counted:
            self._choice.ran(active, output)
            self._is_counted = True


class ActiveTokens:
    """The tokens of one call that are run; see ``Tokens``."""

    def __init__(
        self,
        cache: TokenCache,
        active: Tensor | None,
        num_tokens: int,
        count: Callable[[Tensor | None, Tensor], None],
    ) -> None:
        self.num_tokens = num_tokens
        self._cache, self._active, self._count = cache, active, count

    @property
    def length(self) -> int:
        """See ``Tokens``."""
        return self.num_tokens if self._active is None else len(self._active)

    def take(self, x: Tensor, dim: int) -> Tensor:
        """See ``Tokens``."""
        return x if self._active is None else x.index_select(dim, self._active.to(x.device))

    def give(self, x: Tensor, dim: int) -> Tensor:
        """All tokens, old where one was not run; a copy, since what is kept changes in the next step."""
        whole = self._cache.finish(x.transpose(1, dim), self._active)
        self._count(self._active, whole)
        return whole.transpose(1, dim).clone()

    def attention(self, num_text_tokens: int) -> SelfAttention:
        """Of this call; text stands at the end."""
        active = None if self._active is None else [self._active]
        return RasAttention(DENSE, [self._cache], active, num_text_tokens)
