"""What is offered for each network is what the installed class allows."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import CacheMixin
from diffusers.hooks._helpers import TransformerBlockRegistry

from models.contract import SettingError
from models.methods.diffusers.hooks import attention_modules
from models.methods.diffusers.knobs import (
    applicable,
    check_point,
    check_spread_point,
    full_steps,
    kept_pairs,
    method_bytes,
    method_knobs,
)
from models.methods.diffusers.networks import NETWORKS
from models.methods.diffusers.setting import (
    parse_cache,
    parse_clip_attention,
    parse_picture_attention,
    parse_picture_attention_of_all,
)
from tests.support.tiny_networks import TINY, TinyNetwork
from tests.unit.models.diffusers.test_request import CACHED, RequestMethods, step_of


@pytest.mark.parametrize("tiny", TINY.values(), ids=TINY)
def test_facts_are_those_of_the_class(tiny: TinyNetwork) -> None:
    network, facts = tiny.build(), NETWORKS[tiny.kind]
    blocks = {type(block) for name, block in network.named_modules() if name.count(".") == 1 and "blocks" in name}
    assert facts.has_cache == (isinstance(network, CacheMixin) and hasattr(network, "proj_out"))
    assert facts.has_first_block == (facts.has_cache and all(map(_is_known, blocks)))
    assert facts.has_plan == (getattr(network, "_cp_plan", None) is not None)
    queries_of_text = any(getattr(module, "add_q_proj", None) is not None for module in attention_modules(network))
    assert (facts.text != "none") == queries_of_text


def _is_known(block: type) -> bool:
    try:
        return TransformerBlockRegistry.get(block) is not None
    except ValueError:
        return False


def test_every_network_is_tried() -> None:
    assert {tiny.kind for tiny in TINY.values()} == set(NETWORKS)
    assert all(hasattr(diffusers, name) for name in NETWORKS)


def test_what_does_not_apply_is_said_and_not_offered() -> None:
    assert [knob.name for knob in method_knobs("SD3Transformer2DModel", is_clip=False, num_steps=28)] == ["attention"]
    (attention, cache) = method_knobs("HunyuanVideo15Transformer3DModel", is_clip=True, num_steps=50)
    assert attention.check("tile:2:6")
    with pytest.raises(SettingError, match=r"this network does not say where its tokens may be cut"):
        attention.check("ras:0.5")
    for kind in ("SD3Transformer2DModel", "HunyuanVideo15Transformer3DModel"):
        assert applicable(kind, is_clip=True)["ras"] == f"{kind} does not say where its tokens may be cut (_cp_plan)"
    assert cache.grid == ("taylorseer:3:1", "off")
    with pytest.raises(SettingError, match="cannot be skipped"):
        cache.check("first_block:0.1")
    assert "blocks of Hunyuan" in applicable("HunyuanVideo15Transformer3DModel", is_clip=True)["first_block"]
    assert method_knobs("UNet2DConditionModel", is_clip=False, num_steps=28) == ()
    assert set(applicable("UNet2DConditionModel", is_clip=False).values()) == {
        "nobody has tried it on UNet2DConditionModel"
    }


@pytest.mark.parametrize(
    "text",
    ["", "on", "off:1", "first_block", "first_block:0", "first_block:nan", "first_block:0.1:2", "taylorseer",
     "taylorseer:1", "taylorseer:3:9", "taylorseer:3:1:1"],
)  # fmt: skip
def test_other_forms_of_a_cache_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cache is .*use off, first_block:THRESHOLD"):
        parse_cache(text)


def test_forms_of_attention() -> None:
    assert parse_clip_attention("tile:1:3").references == 1
    assert parse_picture_attention("ras:0.5").amount == 0.5
    for text in ("ras:0", "ras:1.5", "tile:0:3", "adaspa:1"):
        with pytest.raises(ValueError, match="use dense, tile:K:REST"):
            parse_clip_attention(text)
    with pytest.raises(ValueError, match="use dense, adaspa"):
        parse_picture_attention("tile:1:3")
    with pytest.raises(ValueError, match="use dense or adaspa"):
        parse_picture_attention_of_all("tile:1:3")
    check_point({"attention": "tile:1:3"}, (4, 2, 2))
    with pytest.raises(SettingError, match="this clip has 5"):
        check_point({"attention": "tile:1:3"}, (5, 2, 2))
    with pytest.raises(SettingError, match="use cache=off"):
        check_point({"attention": "ras:0.5", "cache": "taylorseer:3"}, (5, 2, 2))
    check_point({"attention": "ras:1", "cache": "taylorseer:3"}, (5, 2, 2))


def test_points_of_a_table_have_ras_where_the_usual_steps_leave_tokens_out() -> None:
    few, many = (method_knobs("FluxTransformer2DModel", is_clip=False, num_steps=steps)[0] for steps in (4, 28))
    assert many.grid == ("ras:0.5", "adaspa:0.5", "dense")
    assert few.grid == ("adaspa:0.5", "dense")
    assert few.check("ras:0.5") == "ras:0.5"


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_full_steps_are_those_that_diffusers_takes(interval: int) -> None:
    tiny = TINY["wan"]
    network, methods = tiny.build(), RequestMethods("dense", f"taylorseer:{interval}")
    blocks: list[int] = []
    network.blocks[0].attn1.register_forward_hook(lambda *given: blocks.append(1))
    with torch.inference_mode():
        for step in range(8):
            step_of(methods, network, tiny, step)
    assert len(blocks) / 2 == full_steps({"cache": f"taylorseer:{interval}", "num_inference_steps": 8})


def test_ranks_refuse_a_cache_that_decides_by_tokens() -> None:
    check_spread_point({"cache": "taylorseer:3"})
    with pytest.raises(SettingError, match="ranks would not decide alike"):
        check_spread_point({"cache": "first_block:0.1"})
    with pytest.raises(SettingError, match="not spread over several ranks"):
        check_spread_point({"attention": "ras:0.5"})
    check_spread_point({"attention": "ras:1"})


def test_pairs_that_are_kept() -> None:
    assert [kept_pairs({"attention": text}) for text in ("dense", "adaspa:0.75", "tile:2:6")] == [1, 0.25, 1 - 30 / 64]


@pytest.mark.parametrize(("tiny", "cache"), [*CACHED, *((tiny, "off") for tiny in TINY.values())])
def test_no_more_is_held_than_was_said(tiny: TinyNetwork, cache: str) -> None:
    network, methods = tiny.build(), RequestMethods("adaspa:0.5", cache)
    point = {"attention": "adaspa:0.5", "cache": cache, "num_inference_steps": 8}
    grid = tiny.grid[0] * tiny.grid[1] * tiny.grid[2]
    text = {"none": 0, "first": 6, "last": 11}[NETWORKS[tiny.kind].text]
    said = method_bytes(point, network.config, tokens=grid, text_tokens=text, branches=2, itemsize=4)
    most = 0
    with torch.inference_mode():
        for step in range(5):
            step_of(methods, network, tiny, step)
            most = max(most, sum(tensor.nbytes for tensor in methods.tensors()))
    assert 0.4 * said < most <= said
