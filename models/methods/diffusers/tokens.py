"""Which tokens of the latents a rank runs, and where in a network they part and meet again.

diffusers' networks say where: ``_cp_plan`` names the inputs and outputs that have a token in each place of a dimension.
Only that description is used. How tokens are cut and how they attend across ranks is ``models.parallel``'s, whatever
their number, and text, which each rank looks at in cross-attention, is not cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from models.parallel.groups import SequenceGroups
from models.parallel.layout import gather, split

CurrentShare = Callable[[], "TokenShare | None"]


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
        """This rank's tokens. Raises: ValueError: the dimension does not have all of them."""
        if x.shape[dim] != self.num_tokens:
            raise ValueError(f"{x.shape[dim]} places where the latents' {self.num_tokens} tokens were to be cut")
        return x.narrow(dim, self._run.start, self.length)

    def give(self, x: Tensor, dim: int) -> Tensor:
        """All tokens, on every rank."""
        return gather(x.transpose(1, dim), self.groups, num_tokens=self.num_tokens).transpose(1, dim)


def install_plan(network: nn.Module, current: CurrentShare) -> list[Any]:
    """Hooks on the modules of ``_cp_plan``, which cut and join while there is a share; their handles.

    Raises: ValueError: the network has no such plan.
    """
    plan: Mapping[str, Any] | None = getattr(network, "_cp_plan", None)
    if not plan:
        raise ValueError(f"{type(network).__name__} does not say where its tokens may be cut (_cp_plan); use one rank")
    handles = []
    for name, entry in plan.items():
        for module in _modules(network, name):
            if isinstance(entry, Mapping):
                inputs = {key: cut for key, cut in entry.items() if not cut.split_output and _is_of_latents(key)}
                outputs = {key: cut for key, cut in entry.items() if cut.split_output}
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
    current: CurrentShare,
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


def _cut_outputs(cuts: Mapping[int, Any], current: CurrentShare, module: nn.Module, args: Any, output: Any) -> Any:
    share = current()
    if share is None or not cuts:
        return output
    parts = [output] if isinstance(output, Tensor) else [*output]
    for number, cut in cuts.items():
        parts[number] = _cut(parts[number], cut, share)
    return parts[0] if isinstance(output, Tensor) else tuple(parts)


def _join(dim: int, current: CurrentShare, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    share = current()
    return output if share is None else share.give(output, dim)


def _cut(x: Any, cut: Any, share: TokenShare) -> Any:
    """As the plan says; it does not where the number of dimensions is another."""
    is_meant = isinstance(x, Tensor) and cut.expected_dims in (None, x.dim())
    return share.take(x, cut.split_dim) if is_meant else x
