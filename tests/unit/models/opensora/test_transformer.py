"""OpenSoraT2V: its published shapes, its parts, and what may and may not change its output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.loading import load_transformer, save_network
from models.families.vdit.rope3d import grid_positions, rotate, rotation
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.dense import DENSE, reference

CONFIG = OpenSoraConfig(
    num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, caption_channels=10,
    sample_size=(8, 12), sample_size_t=5, interpolation_scale_thw=(1.0, 1.5, 2.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> OpenSoraT2V:
    torch.manual_seed(0)
    return OpenSoraT2V(CONFIG).eval().requires_grad_(False)


def inputs(batch: int = 2, grid: tuple[int, int, int] = (3, 4, 6), tokens: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, *grid, generator=generator)
    text = torch.randn(batch, tokens, 10, generator=generator)
    return latents, torch.tensor([10, 900])[:batch], text, torch.ones(batch, tokens, dtype=torch.bool)


# -- the published configuration -------------------------------------------------------------------------------------


def test_published_configuration_has_the_published_shapes() -> None:
    with torch.device("meta"):
        model = OpenSoraT2V(OpenSoraConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    width = 24 * 96
    block = {
        "scale_shift_table": (6, width),
        "ff.net.0.proj.weight": (4 * width, width),
        "ff.net.0.proj.bias": (4 * width,),
        "ff.net.2.weight": (width, 4 * width),
        "ff.net.2.bias": (width,),
    }
    for attention in ("attn1", "attn2"):
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            block |= {f"{attention}.{part}.weight": (width, width), f"{attention}.{part}.bias": (width,)}
    expected = {f"transformer_blocks.{i}.{name}": shape for i in range(32) for name, shape in block.items()}
    expected |= {
        "pos_embed.proj.weight": (width, 4, 2, 2),
        "pos_embed.proj.bias": (width,),
        "adaln_single.emb.timestep_embedder.linear_1.weight": (width, 256),
        "adaln_single.emb.timestep_embedder.linear_1.bias": (width,),
        "adaln_single.emb.timestep_embedder.linear_2.weight": (width, width),
        "adaln_single.emb.timestep_embedder.linear_2.bias": (width,),
        "adaln_single.linear.weight": (6 * width, width),
        "adaln_single.linear.bias": (6 * width,),
        "caption_projection.linear_1.weight": (width, 4096),
        "caption_projection.linear_1.bias": (width,),
        "caption_projection.linear_2.weight": (width, width),
        "caption_projection.linear_2.bias": (width,),
        "scale_shift_table": (2, width),
        "proj_out.weight": (16, width),
        "proj_out.bias": (16,),
    }
    assert shapes == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_771_907_856


def test_config_survives_its_published_form_and_refuses_other_models() -> None:
    written = OpenSoraConfig().to_dict()
    assert OpenSoraConfig.from_dict(written) == OpenSoraConfig()
    with pytest.raises(ValueError, match="use_rope = False"):
        OpenSoraConfig.from_dict({**written, "use_rope": False})
    with pytest.raises(ValueError, match="not known: colour"):
        OpenSoraConfig.from_dict({**written, "colour": 1})
    with pytest.raises(ValueError, match="multiple of 6"):
        OpenSoraConfig(attention_head_dim=64, cross_attention_dim=1536)


def test_interpolation_scales_follow_from_the_sample_size_where_the_config_has_none() -> None:
    written = {**OpenSoraConfig().to_dict(), "sample_size": [60, 80], "sample_size_t": 24}
    for axis in "thw":
        written[f"interpolation_scale_{axis}"] = None
    assert OpenSoraConfig.from_dict(written).interpolation_scale_thw == (1.5, 2.0, 2.0)


# -- the forward pass ------------------------------------------------------------------------------------------------


def test_output_has_the_shape_of_the_latents(model: OpenSoraT2V) -> None:
    latents, timestep, text, mask = inputs(grid=(1, 2, 10))
    assert model(latents, timestep, text, mask).shape == latents.shape


def test_masked_text_changes_nothing_and_other_text_does(model: OpenSoraT2V) -> None:
    latents, timestep, text, mask = inputs()
    mask[:, 3:] = False
    other = text.clone()
    other[:, 3:] = 100.0
    expected = model(latents, timestep, text, mask)
    assert torch.equal(model(latents, timestep, other, mask), expected)
    other[:, 0] = 1.0
    assert not torch.allclose(model(latents, timestep, other, mask), expected, atol=1e-3)


def test_parts_compose_to_the_whole(model: OpenSoraT2V) -> None:
    latents, timestep, text, mask = inputs()
    grid = CONFIG.grid(*latents.shape[2:])
    conditioning = model.conditioning(timestep, text)
    tokens = model.run_blocks(model.patchify(latents), model.positions(grid), conditioning, mask, DENSE)
    whole = model.unpatchify(model.project(tokens, conditioning), grid)
    assert torch.equal(whole, model(latents, timestep, text, mask))


def test_order_of_tokens_is_theirs_to_choose(model: OpenSoraT2V) -> None:
    """Positions travel with the tokens: a permutation of both permutes the output."""
    latents, timestep, text, mask = inputs()
    conditioning = model.conditioning(timestep, text)
    tokens, positions = model.patchify(latents), model.positions(CONFIG.grid(*latents.shape[2:]))
    order = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(5))
    expected = model.run_blocks(tokens, positions, conditioning, mask)
    found = model.run_blocks(tokens[:, order], positions[order], conditioning, mask)
    assert torch.allclose(found, expected[:, order], atol=1e-5)
    per_sample = positions[order].expand(2, -1, -1)
    assert torch.allclose(model.run_blocks(tokens[:, order], per_sample, conditioning, mask), found, atol=1e-5)


def test_every_layer_asks_its_attention_once_in_order(model: OpenSoraT2V) -> None:
    layers = []

    def attention(q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        layers.append((layer, tuple(q.shape)))
        return reference(q, k, v)

    latents, timestep, text, mask = inputs()
    found = model(latents, timestep, text, mask, attention=attention)
    assert layers == [(0, (2, 18, 2, 12)), (1, (2, 18, 2, 12))]
    assert torch.allclose(found, model(latents, timestep, text, mask), atol=1e-5)


def test_latents_that_patches_do_not_divide_are_refused(model: OpenSoraT2V) -> None:
    latents, timestep, text, mask = inputs(grid=(3, 5, 6))
    with pytest.raises(ValueError, match="multiples of 2"):
        model(latents, timestep, text, mask)


# -- positions -------------------------------------------------------------------------------------------------------


def test_positions_are_frame_major() -> None:
    positions = grid_positions((2, 3, 4))
    assert positions.shape == (24, 3)
    assert positions[0].tolist() == [0, 0, 0]
    assert positions[4].tolist() == [0, 1, 0]
    assert positions[12].tolist() == [1, 0, 0]


def test_rotated_products_depend_on_distance_alone() -> None:
    q, k = (torch.randn(1, 1, 1, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))

    def product(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
        turned = [
            rotate(x, *rotation(torch.tensor([place]), 12, (1.0, 1.5, 2.0))) for x, place in ((q, first), (k, second))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product((1, 2, 3), (2, 4, 6)) == pytest.approx(product((5, 5, 5), (6, 7, 8)), abs=1e-5)
    assert product((1, 2, 3), (2, 4, 6)) != pytest.approx(product((1, 2, 3), (2, 4, 7)), abs=1e-3)


def test_scales_stretch_their_own_axis() -> None:
    for axis in range(3):
        scales = tuple(2.0 if i == axis else 1.0 for i in range(3))
        place = torch.zeros(1, 3)
        place[0, axis] = 4
        half = place / 2
        assert torch.equal(rotation(place, 12, scales)[0], rotation(half, 12, (1.0, 1.0, 1.0))[0])  # type: ignore[arg-type]


# -- folders ---------------------------------------------------------------------------------------------------------


def test_folder_is_read_back(model: OpenSoraT2V, tmp_path: Path) -> None:
    save_network(model, CONFIG.to_dict(), tmp_path, torch.float32)
    latents, timestep, text, mask = inputs()
    again = load_transformer(tmp_path)
    assert torch.equal(again(latents, timestep, text, mask), model(latents, timestep, text, mask))


def test_shards_with_an_index_and_a_bin_are_read(model: OpenSoraT2V, tmp_path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    for part, held in parts.items():
        save_file({name: weights[name] for name in held}, tmp_path / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    path = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert load_transformer(tmp_path).state_dict().keys() == weights.keys()
    path.unlink()
    torch.save({"module." + name: tensor for name, tensor in weights.items()}, tmp_path / "diffusion_pytorch_model.bin")
    assert torch.equal(load_transformer(tmp_path).proj_out.weight, weights["proj_out.weight"])


def test_what_does_not_match_is_refused_by_name(model: OpenSoraT2V, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_transformer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    with pytest.raises(ValueError, match="no index of its shards"):
        load_transformer(tmp_path)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor for name, tensor in weights.items() if name != "proj_out.bias"}, path)
    with pytest.raises(ValueError, match=r"misses proj_out\.bias"):
        load_transformer(tmp_path)
    save_file({**weights, "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="extra"):
        load_transformer(tmp_path)
    save_file({**weights, "proj_out.bias": torch.zeros(7)}, path)
    with pytest.raises(ValueError, match=r"proj_out\.bias \(7,\), not \(16,\)"):
        load_transformer(tmp_path)


def test_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    index = {"weight_map": {"proj_out.bias": "../secret.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no plain file name"):
        load_transformer(tmp_path)
