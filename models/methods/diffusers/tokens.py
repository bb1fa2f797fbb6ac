"""Which tokens of the latents a call runs, and where in a network they part and meet again.

diffusers' networks say where: ``_cp_plan`` names the inputs and outputs that have a token in each place of a dimension.
Only that description is used. How tokens are cut and how they attend across ranks is ``models.parallel``'s, whatever
their number, and text, which each rank looks at in cross-attention, is not cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from models.methods.diffusers.networks import NETWORKS
from models.parallel.groups import SequenceGroups
from models.parallel.layout import gather, split

CurrentTokens = Callable[[], "Tokens | None"]


class Tokens(Protocol):
    """Some of the ``num_tokens`` tokens of the latents: those that a rank has, or those that a step runs."""

    num_tokens: int

    @property
    def length(self) -> int:
        """How many they are."""
        ...

    def take(self, x: Tensor, dim: int) -> Tensor:
        """Them, of all tokens along that dimension."""
        ...

    def give(self, x: Tensor, dim: int) -> Tensor:
        """All tokens, of what came of them."""
        ...


class _Cut(NamedTuple):
    """As diffusers' plans describe one."""

    split_dim: int
    expected_dims: int
    split_output: bool = False


_TIMES = {"timestep": _Cut(split_dim=1, expected_dims=2)}
"""Where a network takes a time for each token (Wan 2.2, LTX with a first frame); not every plan says so."""


class TokenShare:
    """This rank's run of ``num_tokens`` tokens, one of those that ``groups`` deal out."""

    def __init__(self, groups: SequenceGroups, num_tokens: int) -> None:
        self.groups = groups
        self.num_tokens = num_tokens
        self._run = split(num_tokens, groups).run(groups.sequence.rank)

    @property
    def length(self) -> int:
        """Tokens of this rank."""
        length: int = self._run.stop - self._run.start
        return length

    def take(self, x: Tensor, dim: int) -> Tensor:
        """This rank's tokens."""
        return x.narrow(dim, self._run.start, self.length)

    def give(self, x: Tensor, dim: int) -> Tensor:
        """All tokens, on every rank."""
        return gather(x.transpose(1, dim), self.groups, num_tokens=self.num_tokens).transpose(1, dim)


def install_plan(network: nn.Module, current: CurrentTokens) -> list[Any]:
    """Hooks on the modules of ``_cp_plan``, which cut and join while there is a share; their handles.

    Raises: ValueError: the network has no such plan.
    """
    plan: Mapping[str, Any] | None = getattr(network, "_cp_plan", None)
    if not plan:
        raise ValueError(f"{type(network).__name__} does not say where its tokens may be cut (_cp_plan); use one rank")
    handles = []
    facts = NETWORKS.get(type(network).__name__)
    of_text = () if facts is None else facts.text_outputs
    for name, entry in {**plan, "": {**_TIMES, **plan.get("", {})}}.items():
        for module in _modules(network, name):
            if isinstance(entry, Mapping):
                inputs = {key: cut for key, cut in entry.items() if not cut.split_output and _is_of_latents(key)}
                outputs = {
                    key: cut for key, cut in entry.items() if cut.split_output and f"{name}.{key}" not in of_text
                }
                before = partial(_cut_inputs, inputs, _parameters(module), current)
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(partial(_cut_outputs, outputs, current)))
            else:
                handles.append(module.register_forward_hook(partial(_join, entry.gather_dim, current)))
    return handles


def _is_of_latents(name: str) -> bool:
    return not name.startswith(("encoder_", "txt_"))


def _modules(network: nn.Module, name: str) -> Iterator[nn.Module]:
    before, star, after = name.partition("*")
    if not star:
        yield network.get_submodule(name)
        return
    for child in network.get_submodule(before.rstrip(".")).children():
        yield child.get_submodule(after.lstrip("."))


def _parameters(module: nn.Module) -> list[str]:
    return [*inspect.signature(type(module).forward).parameters][1:]


def _cut_inputs(
    cuts: Mapping[str, Any],
    parameters: Sequence[str],
    current: CurrentTokens,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    share = current()
    if share is None:
        return None
    given = [*args]
    for position, name in enumerate(parameters):
        cut = cuts.get(name)
        if cut is None:
            continue
        if position < len(given):
            given[position] = _cut(given[position], cut, share)
        elif name in kwargs:
            kwargs[name] = _cut(kwargs[name], cut, share)
    return tuple(given), kwargs


def _cut_outputs(cuts: Mapping[int, Any], current: CurrentTokens, module: nn.Module, args: Any, output: Any) -> Any:
    share = current()
    if share is None or not cuts:
        return output
    parts = [output] if isinstance(output, Tensor) else [*output]
    for number, cut in cuts.items():
        parts[number] = _cut(parts[number], cut, share)
    return parts[0] if isinstance(output, Tensor) else tuple(parts)


def _join(dim: int, current: CurrentTokens, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    share = current()
    return output if share is None else share.give(output, dim)


def _cut(x: Any, cut: Any, share: Tokens) -> Any:
    """As the plan says; it does not where the number of dimensions is another.

    Raises: ValueError: the dimension does not have all tokens.
    """
    if not isinstance(x, Tensor) or cut.expected_dims not in (None, x.dim()):
        return x
    if x.shape[cut.split_dim] != share.num_tokens:
        raise ValueError(f"{x.shape[cut.split_dim]} places where the latents' {share.num_tokens} tokens were to be cut")
    return share.take(x, cut.split_dim)
