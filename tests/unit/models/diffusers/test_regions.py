"""Region-adaptive sampling on diffusers' transformers: as many tokens as asked in every layer, and a twin's numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from models.methods.diffusers.hooks import attention_modules, install_cuts
from models.methods.diffusers.knobs import method_bytes, num_active, whole_steps
from models.methods.diffusers.networks import NETWORKS
from models.methods.diffusers.request import RequestMethods
from models.methods.diffusers.tokens import install_plan
from models.methods.ras.config import RasConfig
from tests.support.tiny_networks import TINY, TinyNetwork
from tests.unit.models.diffusers.test_request import STEPS, Call, are_equal, run, step_of, untouched

_ABLE = pytest.mark.parametrize(
    "tiny", [tiny for tiny in TINY.values() if NETWORKS[tiny.kind].has_plan], ids=lambda tiny: tiny.kind
)
_SPARSE = [step for step in range(STEPS) if not RasConfig().is_dense(step, STEPS)]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class _Counted:
    """Tokens of the latents that each attention module was given, in order."""

    def __init__(self, network: nn.Module, num_text: int) -> None:
        self.counts: list[int] = []
        self._num_text = num_text
        for module in attention_modules(network):
            module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        has_text_inside = "Single" in type(module).__name__ or getattr(module, "pre_only", False)
        self.counts.append(hidden.shape[1] - (self._num_text if has_text_inside else 0))


@_ABLE
def test_share_1_changes_no_bit_and_keeps_nothing(tiny: TinyNetwork) -> None:
    network, wanted, methods = tiny.build(), untouched(tiny), RequestMethods("ras:1", "off")
    assert methods.is_idle
    assert are_equal(run(tiny, network, "ras:1"), wanted)
    assert not are_equal(run(tiny, network, "ras:0.5"), wanted)
    assert are_equal(run(tiny, network), wanted)
    assert methods.tensors() == []


@_ABLE
@pytest.mark.parametrize("share", [0.25, 0.6])
def test_every_layer_runs_as_many_tokens_as_asked(tiny: TinyNetwork, share: float) -> None:
    network, methods = tiny.build(), RequestMethods(f"ras:{share}", "off")
    counted, tokens = _Counted(network, 6), math.prod(tiny.grid)
    by_step: list[set[int]] = []
    for step in range(STEPS):
        step_of(methods, network, tiny, step)
        by_step.append(set(counted.counts))
        assert len(counted.counts) == 2 * len(list(attention_modules(network)))
        counted.counts.clear()
    asked = num_active({"attention": f"ras:{share}"}, tokens)
    assert asked == round(share * tokens)
    assert by_step == [{asked} if step in _SPARSE else {tokens} for step in range(STEPS)]
    assert len(_SPARSE) == STEPS - whole_steps({"attention": f"ras:{share}", "num_inference_steps": STEPS}) == 3
    assert methods.figures()["sparsity"] == pytest.approx(1 - asked / tokens)


@_ABLE
def test_steps_of_the_same_input_give_what_a_whole_one_gives(tiny: TinyNetwork) -> None:
    """What is kept of tokens left out is then what they would give: places, keys and outputs must all be theirs."""
    network, methods = tiny.build(), RequestMethods("ras:0.4", "off")
    wanted = [tiny.call(network, 0, branch) for branch in range(2)]
    for step in range(STEPS):
        for branch in range(2):
            with methods.around(network, Call("n", step, STEPS, branch, tiny.grid, 3.0)):
                found = tiny.call(network, 0, branch)
            torch.testing.assert_close(found, wanted[branch], atol=2e-5, rtol=1e-5)


@_ABLE
def test_tokens_left_out_give_their_last_output_and_branches_share_the_choice(tiny: TinyNetwork) -> None:
    network, methods = tiny.build(), RequestMethods("ras:0.4", "off")
    given: list[torch.Tensor] = []
    install_cuts(network)
    network.get_submodule("proj_out").register_forward_hook(lambda *called: given.append(called[2]))
    for step in range(_SPARSE[0]):
        step_of(methods, network, tiny, step)
    before = [output.clone() for output in given[-2:]]
    step_of(methods, network, tiny, _SPARSE[0])
    changed = [(new != old).any(-1)[0] for new, old in zip(given[-2:], before, strict=True)]
    assert int(changed[0].sum()) == round(0.4 * math.prod(tiny.grid))
    assert torch.equal(changed[0], changed[1])


@_ABLE
def test_no_more_is_held_than_was_said(tiny: TinyNetwork) -> None:
    network, methods = tiny.build(), RequestMethods("ras:0.5", "off")
    point = {"attention": "ras:0.5", "num_inference_steps": STEPS}
    said = method_bytes(point, network.config, tokens=math.prod(tiny.grid), text_tokens=6, branches=2, itemsize=4)
    for step in range(STEPS):
        step_of(methods, network, tiny, step)
        held = sum(tensor.untyped_storage().nbytes() for tensor in methods.tensors())
        assert 0.99 * said < held <= said
    methods.release()
    assert methods.tensors() == []


def test_another_network_runs_all_tokens_first() -> None:
    tiny = TINY["wan"]
    first, second, methods = tiny.build(), tiny.build(), RequestMethods("ras:0.5", "off")
    for step in range(_SPARSE[0]):
        step_of(methods, first, tiny, step, "first")
    assert are_equal(
        step_of(methods, second, tiny, _SPARSE[0], "second"), step_of(RequestMethods("dense", "off"), first, tiny, 4)
    )
    assert methods.needed_nothing
    step_of(methods, second, tiny, _SPARSE[1], "second")
    assert not methods.needed_nothing


def test_a_time_for_each_token_is_cut_with_it() -> None:
    """Of LTX with a first frame, whose plan does not say so."""
    tiny = TINY["ltx"]
    network, methods = tiny.build(), RequestMethods("ras:0.4", "off")
    network.register_forward_pre_hook(_with_times, with_kwargs=True, prepend=True)
    wanted = tiny.call(network, 0, 0)
    for step in range(STEPS):
        with methods.around(network, Call("n", step, STEPS, 0, tiny.grid)):
            found = tiny.call(network, 0, 0)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


def _with_times(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    times = torch.linspace(0, 900, 128)[None]
    return args, {**kwargs, "timestep": times}


def test_a_network_without_a_plan_is_refused_in_words() -> None:
    tiny = TINY["sd3"]
    network, methods = tiny.build(), RequestMethods("ras:0.5", "off")
    with pytest.raises(ValueError, match="SD3Transformer2DModel does not say where its tokens may be cut"):
        step_of(methods, network, tiny, 0)
    with pytest.raises(ValueError, match="_cp_plan"):
        install_plan(nn.Linear(1, 1), lambda: None)


def test_a_cache_between_steps_does_not_go_with_it() -> None:
    with pytest.raises(ValueError, match="use cache=off, or another attention"):
        RequestMethods("ras:0.5", "taylorseer:3")
    assert not RequestMethods("ras:1", "taylorseer:3").is_idle
