"""Where in a network its self-attention is noticed, and where its tokens are cut: torch hooks on its modules.

They are put there once and do nothing outside of a call (see ``call``), so that an untouched request runs an untouched
network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from models.methods.diffusers.call import current_call, current_tokens
from models.methods.diffusers.tokens import install_plan

_MARK, _PLAN_MARK = "vireo_attention_hooks", "vireo_plan_hooks"


def install(network: nn.Module) -> None:
    """Put the hooks there, if they are not yet. Once for each network, before its first request."""
    if hasattr(network, _MARK):
        return
    handles = []
    for layer, module in enumerate(attention_modules(network)):
        handles.append(module.register_forward_pre_hook(partial(_enter, layer), with_kwargs=True))
        handles.append(module.register_forward_hook(_leave, always_call=True))
    setattr(network, _MARK, handles)


def install_cuts(network: nn.Module) -> None:
    """The hooks of a network that runs some of its tokens; as ``install``, once.

    Raises: ValueError: it does not say where its tokens may be cut.
    """
    install(network)
    if not hasattr(network, _PLAN_MARK):
        setattr(network, _PLAN_MARK, install_plan(network, current_tokens))


def attention_modules(network: nn.Module) -> Iterator[nn.Module]:
    """Those of the blocks, in order; not those of what comes before them, such as a refiner of the text."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from (module for module in child.modules() if hasattr(module, "set_processor"))


def _enter(layer: int, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if (call := current_call()) is not None:
        given = dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)) | dict(kwargs)
        call.enter(layer, given["hidden_states"], given.get("encoder_hidden_states"))


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    if (call := current_call()) is not None:
        call.leave()
