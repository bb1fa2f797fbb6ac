"""Caches between denoising steps by diffusers' own hooks, for one request at a time.

The hooks are put on a network for one call and taken off again, so that requests with other caches, or none, find it as
it was. What they remember stays with the request: it is freed with the request, and the network holds nothing of it.

``first_block`` runs the first block and decides by how much its output changed whether the others run, too; it decides
once for a call, so a call belongs to one request. ``taylorseer`` predicts what the last layer puts out (diffusers' lite
mode: it keeps one small tensor for each order, where the full mode keeps the output of every layer).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.hooks import HookRegistry, StateManager
from torch import Tensor, nn

from models.methods.diffusers.setting import CacheKind, CacheSetting


class StepCache:
    """What one request remembers of its earlier steps, for each branch of guidance."""

    def __init__(self, setting: CacheSetting) -> None:
        if setting.kind is CacheKind.OFF:
            raise ValueError("a cache that is off keeps nothing; leave it out")
        self._setting = setting
        self._states: dict[int, dict[str, Any]] = {}  # of each hook in order, by branch

    @contextmanager
    def active(self, network: Any, branch: str) -> Iterator[None]:
        """While ``network``, a ``CacheMixin`` of diffusers, runs one branch of one step of this request."""
        network.enable_cache(self._config(network))
        try:
            for number, manager in enumerate(_managers(network)):
                manager._state_cache = self._states.setdefault(number, {})
            with network.cache_context(branch):
                yield
        finally:
            network.disable_cache()

    def tensors(self) -> list[Tensor]:
        """All that is held now."""
        return [tensor for states in self._states.values() for tensor in _tensors(states)]

    def release(self) -> None:
        """Forget everything: the next steps run in full, as the first ones did."""
        self._states = {}

    def _config(self, network: Any) -> Any:
        if self._setting.kind is CacheKind.FIRST_BLOCK:
            return FirstBlockCacheConfig(threshold=self._setting.threshold)
        return TaylorSeerCacheConfig(
            cache_interval=self._setting.interval,
            max_order=self._setting.order,
            taylor_factors_dtype=network.dtype,
            use_lite_mode=True,
        )


def _managers(network: nn.Module) -> list[StateManager]:
    """Of the hooks, each once, in an order that depends on the network alone."""
    registry = HookRegistry.check_if_exists_or_initialize(network)
    found: dict[int, StateManager] = {}
    for one in (registry, *registry._get_child_registries()):
        for hook in one.hooks.values():
            for value in vars(hook).values():
                if isinstance(value, StateManager):
                    found[id(value)] = value
    return list(found.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)
    elif hasattr(tree, "__dict__"):
        yield from _tensors(vars(tree))
