"""What one request brings around each call of a denoiser: its attention, and its cache between steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from models.contract import Figures
from models.methods.attention.adaspa import AdaSpaAttention
from models.methods.attention.adaspa_config import searches_for
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.attention.memory import adaspa_config
from models.methods.attention.setting import AttentionKind
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from models.methods.diffusers.call import AttentionCall
from models.methods.diffusers.hooks import attention_modules, install, install_cuts
from models.methods.diffusers.networks import text_place
from models.methods.diffusers.regions import ActiveTokens, Regions
from models.methods.diffusers.setting import CacheKind, attention_of, check_together, parse_cache
from models.methods.diffusers.step_cache import StepCache
from models.methods.diffusers.tokens import Tokens, TokenShare
from models.methods.ras.config import RasConfig
from models.parallel.choose import sequence_parallel
from models.parallel.groups import SequenceGroups


class NetworkCall(Protocol):
    """A call of a denoiser: the ``network``'s name, ``step`` of ``num_steps`` from 0, ``branch`` of guidance, whose
    scale is ``guidance_scale``, and the ``grid`` of its latents: frames (1 for a picture), rows and columns of patches.
    ``row``: of the request, where its rows are called one by one."""

    @property
    def network(self) -> str:
        """See the class."""
        ...

    @property
    def step(self) -> int:
        """See the class."""
        ...

    @property
    def num_steps(self) -> int:
        """See the class."""
        ...

    @property
    def branch(self) -> int:
        """See the class."""
        ...

    @property
    def row(self) -> int:
        """See the class."""
        ...

    @property
    def guidance_scale(self) -> float:
        """See the class."""
        ...

    @property
    def grid(self) -> tuple[int, int, int]:
        """See the class."""
        ...


class RequestMethods:
    """Attention and cache of one request, and all that they keep between its steps.

    ``groups``: ranks that the tokens are spread over; all of them make the same calls. ``is_shared``: nothing is kept,
    so that calls may have rows of several requests with the same settings. One step is made after the other; where
    one is made again, or another network goes on (Wan 2.2 changes experts), what was kept is dropped: attention
    searches anew, a cache is filled anew, all tokens are run.

    Raises: ValueError: no such setting, or settings that do not go together.
    """

    def __init__(self, attention: str, cache: str, groups: SequenceGroups | None = None) -> None:
        self._setting, setting = attention_of(attention), parse_cache(cache)
        check_together(self._setting, setting)
        self._groups = None if groups is None or groups.sequence.size == 1 else groups
        if self._setting.kind is AttentionKind.RAS and self._groups is not None:
            raise ValueError("the few tokens of ras are not spread over several ranks; serve the model with one rank")
        self._regions: dict[int, Regions] = {}  # by row
        self._cache = None if setting.kind is CacheKind.OFF else StepCache(setting)
        self._searched: dict[int, AdaSpaAttention] = {}  # by branch
        self._tiles: dict[int, TileAttention] = {}  # by number of text tokens
        self._last: tuple[str, int, int, int] | None = None  # network, step, branch, row
        self._sparsities: list[float] = []
        self._search_s = self._searched_before_s = 0.0  # of the last step; until it

    @property
    def is_shared(self) -> bool:
        """See the class."""
        return self._cache is None and not self._setting.has_schedule

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be done: dense attention, no cache, and one rank."""
        return self._cache is None and self._setting.kind is AttentionKind.DENSE and self._groups is None

    @contextmanager
    def around(self, network: Any, call: NetworkCall) -> Iterator[None]:
        """While ``network`` runs. Raises: ValueError: one that does not fit the settings, or cannot be spread."""
        self._begin(call)
        if (kept := self._searched.get(call.branch)) is not None:
            kept.begin_step(call.step)
        with ExitStack() as stack:
            if self._cache is not None:
                stack.enter_context(self._cache.active(network, str(call.branch)))
            tokens = self._tokens(network, call)
            if tokens is not None or not self._is_dense(call):
                install(network)
                attention = partial(self._attention, network, call, tokens)
                thinned = AttentionCall(attention, math.prod(call.grid), text_place(network), tokens)
                stack.enter_context(thinned.active(must_attend=self._cache is None))
            yield
        self._finish(call)

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        searched = [tensor for one in self._searched.values() for tensor in one.tensors()]
        regions = [tensor for one in self._regions.values() for tensor in one.tensors()]
        return [*searched, *regions, *(self._cache.tensors() if self._cache is not None else [])]

    @property
    def needed_nothing(self) -> bool:
        """Whether the last step would have come out the same with nothing kept before it."""
        return not any(one.is_sparse for one in self._regions.values())

    @property
    def takes_one_row(self) -> bool:
        """Whether each row is a call of its own, since the tokens that are run are its own."""
        return self._setting.kind is AttentionKind.RAS

    def figures(self) -> Figures:
        """Of the last step: the share of pairs of tokens that attention left out, and the seconds of its search."""
        mean = sum(self._sparsities) / len(self._sparsities) if self._sparsities else 0.0
        return {"sparsity": mean, "search_s": self._search_s}

    def release(self) -> None:
        """Forget what is kept. The next steps do without it."""
        self._searched.clear()
        self._regions.clear()
        if self._cache is not None:
            self._cache.release()

    def _begin(self, call: NetworkCall) -> None:
        last, self._last = self._last, (call.network, call.step, call.branch, call.row)
        if last is None or last[1] != call.step:
            self._sparsities, self._search_s = [], 0.0
            self._searched_before_s = sum(one.search_seconds for one in self._searched.values())
        if last is not None and (last[0] != call.network or self._last[1:] <= last[1:]):
            self.release()
            self._searched_before_s = 0.0

    def _is_dense(self, call: NetworkCall) -> bool:
        """Whether the network's own attention does."""
        if self._setting.kind is not AttentionKind.ADASPA:
            return self._setting.kind is AttentionKind.DENSE
        return self._setting.amount == 0 or call.step < searches_for(call.num_steps)[0]

    def _tokens(self, network: nn.Module, call: NetworkCall) -> Tokens | None:
        """Those that this call runs; None: all, and it need not be told."""
        if self._groups is not None:
            check_spread(network)
            install_cuts(network)
            return TokenShare(self._groups, math.prod(call.grid))
        if self._setting.kind is not AttentionKind.RAS:
            return None
        install_cuts(network)
        if call.row not in self._regions:
            self._regions[call.row] = Regions(RasConfig(share=self._setting.amount), call.num_steps)
        regions = self._regions[call.row]
        regions.begin(call.step, call.guidance_scale)
        return regions.tokens(call.branch, math.prod(call.grid))

    def _attention(
        self, network: nn.Module, call: NetworkCall, tokens: Tokens | None, num_text_tokens: int
    ) -> SelfAttention:
        """For a layer of this call; text stands at the end."""
        if isinstance(tokens, ActiveTokens):
            return tokens.attention(num_text_tokens)
        whole = self._whole(network, call, num_text_tokens)
        return whole if self._groups is None else sequence_parallel(whole, self._groups, math.prod(call.grid))

    def _whole(self, network: nn.Module, call: NetworkCall, num_text_tokens: int) -> SelfAttention:
        """That over all tokens."""
        if self._setting.kind is AttentionKind.DENSE:
            return DENSE
        if self._setting.kind is AttentionKind.TILE:
            return self._tiled(network, call.grid, num_text_tokens)
        kept = self._searched.get(call.branch)
        if kept is None:
            num_tokens = math.prod(call.grid) + num_text_tokens
            config = adaspa_config(self._setting, call.num_steps, num_tokens)
            kept = AdaSpaAttention(replace(config, num_text_tokens=num_text_tokens))
            kept.begin_step(call.step)
            self._searched[call.branch] = kept
        return kept

    def _tiled(self, network: nn.Module, grid: tuple[int, int, int], num_text_tokens: int) -> TileAttention:
        tiled = self._tiles.get(num_text_tokens)
        if tiled is None:
            mask = TileMask(num_frames=grid[0], references=self._setting.references)
            layers = [mask] * len(list(attention_modules(network)))
            tiled = self._tiles[num_text_tokens] = TileAttention(layers, grid, num_text_tokens=num_text_tokens)
        return tiled

    def _finish(self, call: NetworkCall) -> None:
        if (regions := self._regions.get(call.row)) is not None:
            self._sparsities.append(1 - regions.num_active / math.prod(call.grid) if regions.is_sparse else 0.0)
        elif self._setting.kind is AttentionKind.TILE:
            self._sparsities.append(next(iter(self._tiles.values())).achieved_sparsity)
        elif (kept := self._searched.get(call.branch)) is not None:
            self._sparsities.append(kept.achieved_sparsity)
        self._search_s = sum(one.search_seconds for one in self._searched.values()) - self._searched_before_s


def check_spread(network: nn.Module) -> None:
    """Pass a network whose tokens can be spread over ranks. Raises: ValueError: says why not."""
    name = type(network).__name__
    if not getattr(network, "_cp_plan", None):
        raise ValueError(f"{name} does not say where its tokens may be cut (_cp_plan); serve it with one rank")
    if text_place(network) != "none":
        raise ValueError(f"{name} attends to text and picture together, which is not spread; serve it with one rank")
