"""Attention and caches on diffusers' transformers: exact where they do nothing, and equal to a plain twin."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.contract import JobState
from models.methods.attention.block_layout import BlockLayout, unpack
from models.methods.attention.tile_mask import TileMask
from models.methods.diffusers.networks import NETWORKS, text_place
from models.methods.diffusers.request import RequestMethods
from tests.support.tiny_networks import TINY, TinyNetwork, random

STEPS = 8
_EVERY = pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
_CLIPS = pytest.mark.parametrize("tiny", [TINY[name] for name in ("wan", "ltx", "hunyuan")], ids=lambda tiny: tiny.kind)


class Call(NamedTuple):
    network: str
    step: int
    num_steps: int
    branch: int
    grid: tuple[int, int, int]
    guidance_scale: float = 1.0
    row: int = 0


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def step_of(methods: RequestMethods, network: nn.Module, tiny: TinyNetwork, step: int, name: str = "n") -> list[Tensor]:
    """Both branches of one step, each with a prompt of its own."""
    outputs = []
    for branch in range(2):
        with methods.around(network, Call(name, step, STEPS, branch, tiny.grid)):
            outputs.append(tiny.call(network, step, branch))
    return outputs


def run(tiny: TinyNetwork, network: nn.Module, attention: str = "dense", cache: str = "off") -> list[Tensor]:
    methods = RequestMethods(attention, cache)
    return [output for step in range(STEPS) for output in step_of(methods, network, tiny, step)]


def untouched(tiny: TinyNetwork) -> list[Tensor]:
    network = tiny.build()
    return [tiny.call(network, step, branch) for step in range(STEPS) for branch in range(2)]


def are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@_EVERY
def test_sparsity_0_and_a_cache_that_is_off_change_no_bit(tiny: TinyNetwork) -> None:
    network, wanted = tiny.build(), untouched(tiny)
    assert are_equal(run(tiny, network), wanted)
    assert are_equal(run(tiny, network, "adaspa:0"), wanted)
    assert not are_equal(run(tiny, network, "adaspa:0.5"), wanted)
    assert are_equal(run(tiny, network), wanted)  # also after others have been there


@_EVERY
def test_dense_steps_of_adaspa_are_those_of_the_network(tiny: TinyNetwork) -> None:
    """Of 8 steps, the first search is in the second: 1 dense step, 1 that searches and is dense, and sparse ones."""
    network, wanted, methods = tiny.build(), untouched(tiny), RequestMethods("adaspa:0.5", "off")
    for step in range(2):
        for output, dense in zip(step_of(methods, network, tiny, step), wanted[2 * step :], strict=False):
            assert (output - dense).abs().max() <= 1e-5
        assert methods.figures()["sparsity"] == 0
    step_of(methods, network, tiny, 2)
    assert 0.3 < methods.figures()["sparsity"] < 0.6


def _lengths(args: Any, kwargs: Any) -> tuple[int, int]:
    """Of queries and of keys."""
    query, key = args[:2] if args else (kwargs["query"], kwargs["key"])
    return query.shape[-2], key.shape[-2]


class _Masked(TorchFunctionMode):
    """Attention over a whole sequence with a further mask for each layer, in the network's own order of tokens."""

    def __init__(self, masks: list[Tensor], lengths: set[int]) -> None:
        super().__init__()
        self.masks, self.lengths = iter(masks), lengths

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and set(_lengths(args, kwargs)) <= self.lengths:
            own = kwargs.get("attn_mask")
            mask = next(self.masks)
            kwargs["attn_mask"] = mask if own is None else own.bool() & mask
        return func(*args, **kwargs)


class _Counted(TorchFunctionMode):
    """Lengths of queries and keys of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.shapes.append(_lengths(args, kwargs))
        return func(*args, **kwargs)


def in_order_of_network(mask: Tensor, network: nn.Module, valid: Tensor) -> Tensor:
    """Of tokens that attend, text last (B, N, L, L), to all of the network's."""
    length, num_text = len(valid), len(valid) - 128
    order = torch.arange(length)
    order = order.roll(-num_text) if text_place(network) == "first" else order
    order = order[valid[order]]
    whole = torch.zeros(*mask.shape[:2], length, length, dtype=torch.bool)
    whole[:, :, order[:, None], order[None, :]] = mask
    return whole


def valid_tokens(tiny: TinyNetwork, branch: int) -> list[Tensor]:
    """For each layer, which of the network's tokens are not padding: 128 of latents, and text."""
    latents = torch.ones(128, dtype=torch.bool)
    text = torch.arange(6) < 6 - branch
    match tiny.kind:
        case "WanTransformer3DModel" | "LTXVideoTransformer3DModel":
            return [latents] * 3
        case "HunyuanVideo15Transformer3DModel":  # picture, second text, text; what is padding goes to the end
            return [torch.cat((latents, torch.arange(11) < 9 - branch))] * 3
        case "SD3Transformer2DModel":  # its first block attends twice, once without text
            with_text = torch.cat((latents, torch.ones(6, dtype=torch.bool)))
            return [with_text, latents, with_text, with_text]
        case "QwenImageTransformer2DModel":
            return [torch.cat((text, latents))] * 3
    return [torch.ones(134, dtype=torch.bool)] * 4


@_EVERY
def test_adaspa_equals_dense_attention_under_the_mask_of_its_blocks(tiny: TinyNetwork) -> None:
    network, methods = tiny.build(), RequestMethods("adaspa:0.5", "off")
    for step in range(3):
        outputs = step_of(methods, network, tiny, step)
    plain = tiny.build()
    for branch, output in enumerate(outputs):
        valid = valid_tokens(tiny, branch)
        searched = methods._searched[branch]
        size, masks = searched.config.block_tokens, []
        for kept, own in zip(searched._chosen.values(), valid, strict=True):
            blocks = -(-int(own.sum()) // size)
            chosen = unpack(kept.packed, blocks, blocks)
            layout = BlockLayout(mask=chosen, block_tokens=size, num_tokens=int(own.sum()))
            masks.append(in_order_of_network(layout.token_mask(), plain, own))
        with _Masked(masks, {len(own) for own in valid}):
            twin = tiny.call(plain, 2, branch)
        assert (output - twin).abs().max() <= 1e-5
        assert (output - tiny.call(plain, 2, branch)).abs().max() > 1e-3


@_CLIPS
def test_tile_masks_equal_dense_attention_under_the_mask_written_out(tiny: TinyNetwork) -> None:
    """Text is seen by, and sees, all."""
    network, methods, plain = tiny.build(), RequestMethods("tile:1:3", "off"), tiny.build()
    outputs = step_of(methods, network, tiny, 3)
    assert methods.figures()["sparsity"] == 6 / 16
    assert methods.tensors() == []
    for branch, output in enumerate(outputs):
        valid = valid_tokens(tiny, branch)
        tokens = int(valid[0].sum())
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        mask[..., :128, :128] = TileMask(num_frames=4, references=1).token_mask(32)
        twin_masks = [in_order_of_network(mask, plain, own) for own in valid]
        with _Masked(twin_masks, {len(valid[0])}):
            twin = tiny.call(plain, 3, branch)
        assert (output - twin).abs().max() <= 1e-5


@_CLIPS
def test_a_tile_mask_of_references_alone_changes_no_bit(tiny: TinyNetwork) -> None:
    if tiny.kind == "HunyuanVideo15Transformer3DModel":
        pytest.skip("its padding is left out instead of masked, which rounds otherwise")
    assert are_equal(run(tiny, tiny.build(), "tile:4:0"), untouched(tiny))


def caches_of(tiny: TinyNetwork) -> list[str]:
    facts = NETWORKS[tiny.kind]
    return [*(["first_block:0.9"] if facts.has_first_block else []), *(["taylorseer:3:1"] if facts.has_cache else [])]


CACHED = [(tiny, cache) for tiny in TINY.values() for cache in caches_of(tiny)]
_CACHED = pytest.mark.parametrize(("tiny", "cache"), CACHED, ids=lambda value: getattr(value, "kind", value))


@_CACHED
def test_caches_skip_steps_and_hold_what_they_say_they_do(tiny: TinyNetwork, cache: str) -> None:
    network, wanted = tiny.build(), untouched(tiny)
    outputs = run(tiny, network, cache=cache)
    assert are_equal(outputs[:2], wanted[:2])
    assert not are_equal(outputs, wanted)
    methods = RequestMethods("dense", cache)
    state = JobState(request=None, point={}, seed=0, kept={}, cache={"methods": methods})
    step_of(methods, network, tiny, 0)
    assert state.bytes_held == sum(tensor.nbytes for tensor in methods.tensors()) > 0
    methods.release()
    assert state.bytes_held == 0


@_CACHED
def test_networks_keep_nothing_of_a_cache(tiny: TinyNetwork, cache: str) -> None:
    """So that a request which is dropped, in whatever way, leaves no name and no byte behind."""
    network = tiny.build()
    before = {name: module.forward for name, module in network.named_modules()}
    methods = RequestMethods("dense", cache)
    step_of(methods, network, tiny, 0)
    assert not network.is_cache_enabled
    assert {name: module.forward for name, module in network.named_modules()} == before
    kept = [weakref.ref(tensor) for tensor in methods.tensors()]
    del methods
    gc.collect()
    assert kept
    assert all(one() is None for one in kept)


@_CACHED
def test_interleaved_requests_have_the_bits_of_each_alone(tiny: TinyNetwork, cache: str) -> None:
    """Another cache, another sparsity and none, one step each in turn."""
    network = tiny.build()
    kinds = [
        ("dense", cache),
        ("adaspa:0.5", cache),
        ("adaspa:0.7", "off"),
        ("dense", "taylorseer:2:0"),
        ("dense", "off"),
    ]
    alone = [run(tiny, network, *kind) for kind in kinds]
    requests = [RequestMethods(*kind) for kind in kinds]
    together: list[list[Tensor]] = [[] for _ in kinds]
    for step in range(STEPS):
        for request, outputs in zip(requests, together, strict=True):
            outputs += step_of(request, network, tiny, step)
    assert all(are_equal(one, other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("kind", [("adaspa:0.5", "off"), ("dense", "first_block:0.9"), ("dense", "taylorseer:3:1")])
def test_what_was_lost_is_made_anew(kind: tuple[str, str]) -> None:
    """A resume goes on with nothing kept, which is not what an unbroken run does; a step that is taken again, and a
    network that takes over, do the same."""
    tiny, network = TINY["wan"], TINY["wan"].build()
    unbroken = run(tiny, network, *kind)

    def after(methods: RequestMethods, first: int, name: str = "n") -> list[Tensor]:
        return [out for step in range(first, STEPS) for out in step_of(methods, network, tiny, step, name)]

    resumed = after(RequestMethods(*kind), 5)
    assert all(bool(torch.isfinite(one).all()) for one in resumed)
    assert not are_equal(resumed, unbroken[10:])
    for last, name in ((5, "n"), (4, "another")):
        methods = RequestMethods(*kind)
        for step in range(last + 1):
            step_of(methods, network, tiny, step)
        assert are_equal(after(methods, 5, name), resumed)


def test_a_step_that_fails_leaves_the_network_as_it_was() -> None:
    tiny = TINY["wan"]
    network, wanted = tiny.build(), untouched(tiny)
    methods = RequestMethods("adaspa:0.5", "first_block:0.9")
    step_of(methods, network, tiny, 0)
    broken = replace(tiny, call=lambda *where: tiny.call(*where) / [])
    with pytest.raises(TypeError):
        step_of(methods, network, broken, 4)
    assert are_equal([tiny.call(network, step, branch) for step in range(STEPS) for branch in range(2)], wanted)


def test_a_network_without_such_attention_is_refused() -> None:
    """Another grid: none of its attention has that many tokens."""
    tiny = TINY["wan"]
    network, methods = tiny.build(), RequestMethods("tile:2:0", "off")
    with (
        pytest.raises(ValueError, match="no attention of this network is over the 22 tokens"),
        methods.around(network, Call("n", 0, STEPS, 0, (2, 1, 11))),
    ):
        tiny.call(network, 0, 0)


def test_cross_attention_to_as_many_tokens_of_text_stays_dense() -> None:
    tiny = TINY["wan"]
    network, methods = tiny.build(), RequestMethods("tile:1:3", "off")
    arguments = {"hidden_states": random(1, 1, 4, 4, 8, 16), "timestep": torch.tensor([500.0])}
    with _Counted() as counted, methods.around(network, Call("n", 0, STEPS, 0, tiny.grid)):
        network(**arguments, encoder_hidden_states=random(2, 1, 128, 16))
    assert counted.shapes.count((128, 128)) == 3  # of attn2; a tile mask makes calls of other shapes


def test_requests_that_keep_something_take_no_company() -> None:
    assert RequestMethods("dense", "off").is_idle
    assert RequestMethods("tile:1:3", "off").is_shared
    assert not RequestMethods("adaspa:0.5", "off").is_shared
    assert not RequestMethods("dense", "first_block:0.1").is_shared
