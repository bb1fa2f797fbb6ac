"""CausalVAE: names, shapes, causality, loading, and what it refuses. Numbers: the family's oracle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.families.vdit.causal_vae import CausalVae, Posterior
from models.families.vdit.loading import load_vae
from models.families.vdit.vae_config import CausalVaeConfig
from models.families.vdit.vae_layers import AttnBlock3D, AttnBlock3DMixed

V1_1 = CausalVaeConfig()
V1_2 = CausalVaeConfig.published()


def small(config: CausalVaeConfig) -> CausalVaeConfig:
    return dataclasses.replace(
        config, hidden_size=8, hidden_size_mult=(1, 1, 2, 2), num_res_blocks=1, norm_num_groups=4
    )


def small_vae(config: CausalVaeConfig = V1_2) -> CausalVae:
    torch.manual_seed(0)
    return CausalVae(small(config)).eval().requires_grad_(False)


# -- the published networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "tensors", "parameters"), [(V1_2, 248, 239_189_991), (V1_1, 260, 246_859_499)])
def test_published_configs_have_as_many_parameters_as_the_official_code(
    config: CausalVaeConfig, tensors: int, parameters: int
) -> None:
    with torch.device("meta"):
        state = CausalVae(config).state_dict()
    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, parameters)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.conv_in.weight", (128, 3, 3, 3)),
        ("encoder.down.0.downsample.conv.weight", (128, 128, 3, 3)),
        ("encoder.down.1.block.0.nin_shortcut.weight", (256, 128, 1, 1)),
        ("encoder.down.2.block.0.conv1.conv.weight", (512, 256, 3, 3, 3)),
        ("encoder.down.2.downsample.conv.conv.weight", (512, 512, 3, 3, 3)),
        ("encoder.mid.attn_1.q.conv.weight", (512, 512, 1, 1, 1)),
        ("encoder.conv_out.conv.weight", (8, 512, 3, 3, 3)),
        ("quant_conv.conv.weight", (8, 8, 1, 1, 1)),
        ("post_quant_conv.conv.weight", (4, 4, 1, 1, 1)),
        ("decoder.up.1.upsample.conv.conv.weight", (256, 256, 1, 3, 3)),
        ("decoder.up.3.upsample.conv.conv.weight", (512, 512, 3, 3, 3)),
        ("decoder.norm_out.weight", (128,)),
    ],
)
def test_parameters_of_the_published_vae_have_its_names(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        assert tuple(CausalVae(V1_2).state_dict()[name].shape) == shape


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [V1_1, V1_2], ids=["v1.1", "v1.2"])
@pytest.mark.parametrize("size", [(1, 8, 8), (5, 16, 24), (13, 24, 8)])
def test_clip_has_one_latent_per_four_frames_and_comes_back_whole(
    config: CausalVaeConfig, size: tuple[int, int, int]
) -> None:
    vae = small_vae(config)
    latents = vae.encode(torch.randn(2, 3, *size)).mode()
    assert latents.shape == (2, 4, (size[0] - 1) // 4 + 1, size[1] // 8, size[2] // 8)
    assert vae.decode(latents).shape == (2, 3, *size)


@pytest.mark.parametrize("config", [V1_1, V1_2], ids=["v1.1", "v1.2"])
def test_strides_are_four_frames_and_eight_pixels(config: CausalVaeConfig) -> None:
    assert (config.time_stride, config.space_stride) == (4, 8)


# -- causality ---------------------------------------------------------------------------------------------------------


def without_norms(vae: CausalVae) -> CausalVae:
    """Group norms take statistics over the whole clip, later frames included; everything else looks back only."""
    for module in list(vae.encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return vae


@pytest.mark.parametrize("config", [V1_1, V1_2], ids=["v1.1", "v1.2"])
def test_later_frames_do_not_change_earlier_latents_but_for_the_norms(config: CausalVaeConfig) -> None:
    vae = without_norms(small_vae(config))
    clip = torch.randn(1, 3, 13, 16, 16)
    changed = clip.clone()
    changed[:, :, 9:] += 1.0
    before, after = vae.encode(clip).mean, vae.encode(changed).mean
    torch.testing.assert_close(after[:, :, :3], before[:, :, :3])
    assert not torch.allclose(after[:, :, 3], before[:, :, 3], atol=1e-3)


def test_first_frame_alone_gives_the_latents_that_it_has_in_a_clip_but_for_the_norms() -> None:
    vae = without_norms(small_vae())
    clip = torch.randn(1, 3, 9, 16, 16)
    torch.testing.assert_close(vae.encode(clip[:, :, :1]).mean, vae.encode(clip).mean[:, :, :1])


def test_norms_see_the_whole_clip() -> None:
    vae = small_vae()
    clip = torch.randn(1, 3, 9, 16, 16)
    changed = clip.clone()
    changed[:, :, 5:] += 5.0
    assert not torch.allclose(vae.encode(changed).mean[:, :, 0], vae.encode(clip).mean[:, :, 0], atol=1e-4)


def test_attention_stays_within_a_frame_and_the_first_version_does_not() -> None:
    torch.manual_seed(0)
    fixed, first = AttnBlock3D(8, 4), AttnBlock3DMixed(8, 4)
    first.load_state_dict(fixed.state_dict())
    for layer in (fixed, first):
        layer.add_module("norm", nn.Identity())
    clip = torch.randn(1, 8, 3, 4, 4)
    changed = clip.clone()
    changed[:, :, 2] += 1.0
    torch.testing.assert_close(fixed(changed)[:, :, :2], fixed(clip)[:, :, :2])
    assert not torch.allclose(first(changed)[:, :, :2], first(clip)[:, :, :2], atol=1e-4)


# -- posterior ---------------------------------------------------------------------------------------------------------


def test_sample_is_the_mean_plus_scaled_noise_of_the_generator() -> None:
    mean, logvar = torch.full((1, 4, 1, 8, 8), 2.0), torch.full((1, 4, 1, 8, 8), -2.0)
    posterior = Posterior(torch.cat([mean, logvar], dim=1))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    sample = posterior.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(sample, mean + torch.exp(torch.tensor(-1.0)) * noise)
    assert torch.equal(posterior.mode(), mean)


def test_unit_gaussian_has_no_divergence() -> None:
    assert Posterior(torch.zeros(1, 8, 1, 2, 2)).kl() == 0.0


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 16, 16), "4 frames; the count must be 4 k"),
        ((1, 3, 5, 12, 16), "16x12 pixels; both sides must be multiples of 8"),
        ((1, 4, 5, 16, 16), r"it must be \(batch, 3, frames, rows, columns\)"),
        ((3, 5, 16, 16), r"shape \(3, 5, 16, 16\)"),
    ],
)
def test_clips_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_vae().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 3, 2, 2, 2), (4, 2, 2, 2), (1, 4, 0, 2, 2)])
def test_latents_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"it must be \(batch, 4, frames, rows, columns\)"):
        small_vae().decode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 24}, "norm_num_groups 32 does not divide 24 channels"),
        ({"decoder_resnet_blocks": ("ResnetBlock3D",)}, "decoder_resnet_blocks has 1 entries"),
        ({"decoder_temporal_upsample": ("", "", "", "TimeUpsampleRes2x")}, "they must be the same"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalVaeConfig(**changes)  # type: ignore[arg-type]


def test_layers_that_are_not_built_here_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'AttnBlock2D'; known in that place: AttnBlock3D, AttnBlock3DFix"):
        CausalVae(dataclasses.replace(small(V1_2), encoder_attention="AttnBlock2D"))


# -- published folders -------------------------------------------------------------------------------------------------


def written(config: CausalVaeConfig) -> dict[str, object]:
    """A config.json as published: lists, fields of training, and fields of the library that wrote it."""
    training = {"dropout": 0.0, "q_conv": "CausalConv3d", "lr": 1e-5, "loss_type": "x", "loss_params": {"a": 1}}
    library = {"_class_name": "CausalVAEModel", "_diffusers_version": "0.27.2", "in_channels": 3, "out_channels": 3}
    return json.loads(json.dumps({**dataclasses.asdict(config), **training, **library}))  # type: ignore[no-any-return]


@pytest.mark.parametrize("config", [V1_1, V1_2], ids=["v1.1", "v1.2"])
def test_config_survives_its_json(config: CausalVaeConfig) -> None:
    assert CausalVaeConfig.from_dict(written(config)) == config


@pytest.mark.parametrize(("field", "value"), [("in_channels", 1), ("temporal_attention", True)])
def test_config_of_another_network_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        CausalVaeConfig.from_dict({**written(V1_2), field: value})


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "ckpt"])
def test_published_folder_is_read(tmp_path: Path, suffix: str) -> None:
    vae = small_vae()
    (tmp_path / "config.json").write_text(json.dumps(written(vae.config)))
    path = tmp_path / f"diffusion_pytorch_model.{suffix}"
    if suffix == "safetensors":
        save_file(vae.state_dict(), path)
    elif suffix == "bin":
        torch.save(vae.state_dict(), path)
    else:  # as the training code leaves it
        averaged = {f"module.{name}": tensor for name, tensor in vae.state_dict().items()}
        torch.save({"ema_state_dict": averaged, "state_dict": {}}, path)
    loaded = load_vae(tmp_path)
    clip = torch.randn(1, 3, 5, 16, 16)
    assert loaded.config == vae.config
    assert torch.equal(loaded.encode(clip).mean, vae.encode(clip).mean)


def test_weights_of_the_other_version_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(written(small(V1_2))))
    save_file(small_vae(V1_1).state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"misses|has, and this network does not|other shapes"):
        load_vae(tmp_path)
