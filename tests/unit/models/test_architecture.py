"""Published variants have the published names and shapes; the expected values are facts about official checkpoints."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from models.contract import Variant
from models.families.dyn_perceiver.config import DynPerceiverConfig, RegNetConfig
from models.families.dyn_perceiver.family import FAMILY
from models.families.dyn_perceiver.flops import exit_flops
from models.families.dyn_perceiver.folding import folded
from models.families.dyn_perceiver.load import build_meta, load_model, random_model
from models.families.dyn_perceiver.model import DynPerceiver
from models.registry import find

REGNET = find("dyn-perceiver-regnety-800mf")[1]
RESNET = find("dyn-perceiver-resnet50-x0375")[1]
MOBILENET = find("dyn-perceiver-mobilenetv3-x075")[1]
NANO = find("dyn-perceiver-nano")[1]

# Counted on the official models (see docs/models/dyn-perceiver.md).
PARAMETERS = {REGNET.id: 21_798_360, RESNET.id: 20_283_336, MOBILENET.id: 9_299_040}
SHAPES = {
    REGNET.id: {
        "latent": (128, 32),
        "cnn_stem.0.weight": (32, 3, 3, 3),
        "cnn_body.block1.block1-0.proj.0.weight": (64, 32, 1, 1),
        "cnn_body.block3.block3-7.f.b.0.weight": (320, 16, 3, 3),
        "cnn_body.block4.block4-1.f.se.fc1.bias": (196,),
        "dwc4_x2z.weight": (320, 1, 7, 7),
        "cross_att3_x2z.cross_attn.attention.relative_position_bias": (1, 49, 144),
        "cross_att4_x2z.cross_attn.q_norm.weight": (320,),
        "cross_att4_z2x.cross_attn.attention.q_proj.weight": (40, 320),
        "last_cross_att_z2x.cross_attn.attention.o_proj.weight": (784, 98),
        "self_att3.8.mlp.fc1.weight": (576, 144),
        "self_att4.5.self_attn.attention.o_proj.bias": (320,),
        "token_mixer.0.1.weight": (64, 128),
        "token_expander.2.1.weight": (320, 144),
        "early_classifier3.weight": (1000, 144),
        "isc3.0.weight": (320, 1000),
        "isc4.1.running_mean": (320,),
        "classifier_att.weight": (1000, 640),
        "classifier_cnn.weight": (1000, 784),
        "classifier_merge.0.running_var": (1424,),
        "classifier_merge.1.weight": (1000, 1424),
    },
    RESNET.id: {
        "latent": (128, 24),
        "cnn_stem.0.weight": (24, 3, 7, 7),
        "cnn_body_stage1.0.downsample.0.weight": (96, 24, 1, 1),
        "cnn_body_stage3.5.conv2.weight": (96, 96, 3, 3),
        "cnn_body_stage4.0.bn3.running_mean": (768,),
        "classifier_cnn.weight": (1000, 768),
        "classifier_merge.1.weight": (1000, 1536),
    },
    MOBILENET.id: {
        "cnn_stem.0.0.weight": (16, 3, 3, 3),
        "cnn_stem.1.block.0.0.weight": (16, 1, 3, 3),
        "cnn_body_stage2.2.block.2.0.weight": (64, 184, 1, 1),
        "cnn_body_stage4.2.0.weight": (720, 120, 1, 1),
        "classifier_cnn.3.weight": (1000, 960),
        "classifier_merge.4.weight": (1000, 960),
        "self_att4.8.self_attn.norm.weight": (120,),
    },
}


@pytest.mark.parametrize("variant", [REGNET, RESNET, MOBILENET], ids=lambda variant: variant.id)
def test_published_variant_builds_on_meta_with_published_names_and_shapes(variant: Variant) -> None:
    model = build_meta(variant)
    state = model.state_dict()
    assert all(tensor.is_meta for tensor in state.values())
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[variant.id]
    expected = SHAPES[variant.id]
    assert {name: tuple(state[name].shape) for name in expected} == expected


@pytest.mark.parametrize(
    ("variant", "official_mmacs"), [(REGNET, (459.1, 1064.9, 1227.6, 1298.0)), (MOBILENET, (97.7, 182.0, 206.9, 266.4))]
)
def test_flops_agree_with_the_official_count_within_half_a_percent(
    variant: Variant, official_mmacs: tuple[float, ...]
) -> None:
    # Half a percent: the official counter adds poolings and leaves out squeeze-and-excite of RegNet; ours the reverse.
    ours = [count / 1e6 for count in exit_flops(build_meta(variant))]
    assert ours == pytest.approx(official_mmacs, rel=5e-3)


def test_flops_of_a_linear_part_are_exact() -> None:
    cheap = exit_flops(build_meta(NANO))
    twice = exit_flops(DynPerceiver(dataclasses.replace(NANO.config["network"], num_classes=20)))
    assert twice[0] - cheap[0] == 10 * 32  # the exit's own linear layer
    assert twice[1] - cheap[1] == 10 * 32 + 10 * 80 + 10 * 160  # and what feeds exit 1's logits into exit 2


@pytest.mark.parametrize("variant", FAMILY.variants, ids=lambda variant: variant.id)
def test_the_card_says_what_the_network_costs(variant: Variant) -> None:
    assert list(variant.config["exit_macs"]) == exit_flops(build_meta(variant))


def test_folding_leaves_no_batch_norm_and_the_original_alone() -> None:
    model = random_model(RESNET).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = folded(model)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in fast.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_random_weights_are_the_same_for_the_same_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = random_model(NANO, seed=5), random_model(NANO, seed=5)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_published_variant_without_weights_says_how_to_get_them() -> None:
    with pytest.raises(ValueError, match=r"vireo convert .* --model dyn-perceiver-regnety-800mf"):
        load_model(REGNET)


def test_latents_that_do_not_halve_are_refused() -> None:
    backbone = RegNetConfig(stem_width=8, widths=(8, 8, 8, 8), depths=(1, 1, 1, 1), group_width=8)
    with pytest.raises(ValueError, match="num_latents 20"):
        DynPerceiverConfig(backbone=backbone, num_latents=20, latent_depths=(1, 1, 1, 1))


def test_width_that_is_no_multiple_of_the_group_is_refused() -> None:
    backbone = RegNetConfig(stem_width=8, widths=(8, 12, 8, 8), depths=(1, 1, 1, 1), group_width=8)
    with pytest.raises(ValueError, match="group_width 8"):
        DynPerceiver(DynPerceiverConfig(backbone=backbone, num_latents=8, latent_depths=(1, 1, 1, 1)))
