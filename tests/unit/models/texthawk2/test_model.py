"""The architecture: names, shapes, parameter counts, and each part against a plain account of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.connector import Connector
from models.families.texthawk2.detection import DetectionHead
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.position import ScalablePositionEmbedding, slerp
from models.families.texthawk2.proposal import QueryProposalNetwork
from models.families.texthawk2.rearrange import rearrange
from models.families.texthawk2.vision import normalise, read_levels

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 112,
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
IMAGE = 5


@pytest.fixture(scope="module")
def config() -> TextHawk2Config:
    return TextHawk2Config(
        vision_config=VISION,
        text_config=TEXT,
        vision_levels=(1, 3),
        resampler_routing=(1, 1, 0),
        resampler_hidden_size=24,
        resampler_num_heads=2,
        resampler_intermediate_size=40,
        image_token_id=IMAGE,
    )


@pytest.fixture(scope="module")
def model(config: TextHawk2Config) -> TextHawk2ForConditionalGeneration:
    torch.manual_seed(0)
    return TextHawk2ForConditionalGeneration(config).eval()


def tiles(count: int, seed: int = 0, side: int = 112) -> torch.Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))


# -- the published configuration --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> TextHawk2ForConditionalGeneration:
    with torch.device("meta"):
        return TextHawk2ForConditionalGeneration(TextHawk2Config())


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_configuration_has_the_parts_of_siglip_and_qwen2(
    published: TextHawk2ForConditionalGeneration,
) -> None:
    """Written out by hand from the papers' shapes, not by the code under test."""
    d, mlp = 1152, 4304
    siglip_layer = 4 * (d * d + d) + (d * mlp + mlp) + (mlp * d + d) + 4 * d
    siglip = 27 * siglip_layer + (3 * 14 * 14 * d + d) + 256 * d + 2 * d
    assert count(published.vision_tower) == siglip

    h, f, kv, vocab = 3584, 18_944, 512, 152_704
    qwen_layer = (h * h + h) + 2 * (h * kv + kv) + h * h + 3 * h * f + 2 * h
    assert count(published.language_model) == 28 * qwen_layer + 2 * vocab * h + h

    attention = 3 * (d * d + d) + d * d
    resampler = 4 * (2 * attention + 3 * d * mlp + 4 * d) + d
    proposal = (d * 4 * d + 4 * d) + (4 * d * d + d) + (d * d + d)
    assert count(published.connector) == resampler + proposal + 2 * (4 * d + 2) + (4 * d * h + h)


def test_published_configuration_names_every_tensor_as_transformers_does(
    published: TextHawk2ForConditionalGeneration,
) -> None:
    names = {name: tuple(value.shape) for name, value in published.state_dict().items()}
    with torch.device("meta"):
        tower = SiglipVisionModel(SiglipVisionConfig(**published.config.vision_config.to_dict())).state_dict()
        language = Qwen2ForCausalLM(Qwen2Config(**published.config.text_config.to_dict())).state_dict()
    theirs = {f"vision_tower.{name}": tuple(value.shape) for name, value in tower.items()}
    theirs |= {f"language_model.{name}": tuple(value.shape) for name, value in language.items()}
    assert {name: shape for name, shape in names.items() if not name.startswith("connector.")} == theirs
    assert names["vision_tower.embeddings.patch_embedding.weight"] == (1152, 3, 14, 14)
    assert names["language_model.model.layers.27.mlp.down_proj.weight"] == (3584, 18_944)
    assert names["connector.resampler.layers.3.cross_attn.k_proj.weight"] == (1152, 1152)
    assert names["connector.out_proj.weight"] == (3584, 4 * 1152)


@pytest.mark.parametrize(("grid", "tokens"), [((1, 1), 16), ((5, 4), 16 + 320), ((1, 2), 16 + 32), ((6, 12), 1168)])
def test_published_connector_gives_sixteen_tokens_a_tile(
    published: TextHawk2ForConditionalGeneration, grid: tuple[int, int], tokens: int
) -> None:
    """The paper's examples: a 5x4 grid is 320 tokens, 1,168 are the most (both beside the thumbnail's 16)."""
    num_tiles = grid[0] * grid[1] + (grid != (1, 1))
    with torch.device("meta"):
        (embedded,) = published.encode_images(torch.empty(num_tiles, 224, 224, 3, dtype=torch.uint8), [grid])
    assert embedded.shape == (tokens, 3584)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_levels_are_the_towers_own_hidden_states(model: TextHawk2ForConditionalGeneration) -> None:
    pixels = normalise(tiles(2))
    with torch.no_grad():
        hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        levels = read_levels(model.vision_tower, pixels, [1, 3])
    for level, depth in zip(levels, (1, 3), strict=True):
        torch.testing.assert_close(level, hidden[depth], rtol=1e-5, atol=1e-5)


def test_normalise_is_siglips(tmp_path: Path) -> None:
    shown = tiles(1)
    expected = ((shown.double() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(normalise(shown), expected, rtol=0, atol=1e-6)


def test_queries_are_pooled_two_by_two() -> None:
    network = QueryProposalNetwork(6, 4)
    features = torch.randn(2, 16, 6)
    hidden = network.fc2(nn.functional.gelu(network.fc1(features))).view(2, 4, 4, 6).permute(0, 3, 1, 2)
    pooled = nn.functional.max_pool2d(hidden, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network(features, 4), network.out_proj(pooled))


def test_positions_lie_on_the_sphere_and_end_where_they_should() -> None:
    embedding = ScalablePositionEmbedding(12, 3)
    row = embedding._axis(0, 7).view(7, 3, 4)
    torch.testing.assert_close(row.norm(dim=-1), torch.full((7, 3), 2.0))
    ends = nn.functional.normalize(embedding.ends[0], dim=-1) * 2.0
    torch.testing.assert_close(row[[0, -1]], ends)
    steps = (row[1:] * row[:-1]).sum(-1)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-4, atol=1e-4)


def test_positions_scale_with_the_grid() -> None:
    embedding = ScalablePositionEmbedding(12, 3)
    fine, coarse = embedding(9, 5), embedding(5, 3)
    torch.testing.assert_close(fine[::2, ::2], coarse)
    assert embedding(1, 1).isfinite().all()


def test_slerp_of_parallel_vectors_is_finite() -> None:
    vector = nn.functional.normalize(torch.ones(1, 4), dim=-1)
    torch.testing.assert_close(slerp(vector, vector, torch.tensor(0.5)), vector, rtol=1e-3, atol=1e-3)


def test_rearrangement_reads_a_row_through_all_tiles() -> None:
    """Each query is marked with its place on the page; a twin builds the page query by query."""
    rows, columns, side, merge = 2, 3, 4, 2
    queries = torch.zeros(1 + rows * columns, side * side, 1)
    queries[0] = -torch.arange(side * side)[:, None] - 1
    page = torch.arange(rows * side * columns * side).view(rows * side, columns * side)
    for row in range(rows):
        for column in range(columns):
            part = page[row * side : (row + 1) * side, column * side : (column + 1) * side]
            queries[1 + row * columns + column, :, 0] = part.flatten()
    tokens = rearrange(queries, rows, columns, side, merge)
    assert tokens.shape == ((1 + rows * columns) * side * side // merge, merge)
    assert (tokens[: side * side // merge].flatten() == queries[0, :, 0]).all()
    assert (tokens[side * side // merge :].flatten() == page.flatten()).all()


def test_rearrangement_refuses_a_wrong_number_of_tiles() -> None:
    with pytest.raises(ValueError, match="3 tiles do not make a grid of 2x2"):
        rearrange(torch.zeros(3, 16, 1), 2, 2, 4, 4)


def test_detection_head_gives_boxes() -> None:
    boxes = DetectionHead(8)(torch.randn(3, 8) * 100)
    assert boxes.shape == (3, 4)
    assert ((boxes >= 0) & (boxes <= 1)).all()


def test_resampler_layers_read_the_levels_they_are_routed_to(config: TextHawk2Config) -> None:
    connector = Connector(config)
    levels = [torch.randn(1, 64, 32), torch.randn(1, 64, 32)]
    seen: list[torch.Tensor] = []
    for layer in connector.resampler.layers:
        layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
    connector(levels, [(1, 1)])
    assert [next(index for index, level in enumerate(levels) if level is one) for one in seen] == [1, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_levels": (1, 9)}, "vision_levels"),
        ({"resampler_routing": (2,)}, "resampler_routing"),
        ({"merge_width": 3}, "cannot be pooled"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextHawk2Config(
            vision_config=VISION, text_config=TEXT, **{"vision_levels": (1,), "resampler_routing": (0,)} | change
        )


# -- the whole --------------------------------------------------------------------------------------------------------


def prompt(num_images: int, tokens_each: int) -> torch.Tensor:
    ids = [7, 8]
    for index in range(num_images):
        ids += [IMAGE] * tokens_each + [9 + index]
    return torch.tensor([ids])


def test_cached_generation_equals_the_full_forward(model: TextHawk2ForConditionalGeneration) -> None:
    ids, pixels, grids = prompt(2, 4), tiles(2, 3), torch.tensor([[1, 1], [1, 1]])
    with torch.no_grad():
        made = model.generate(
            input_ids=ids, pixel_values=pixels, grids=grids, max_new_tokens=8, do_sample=False, eos_token_id=None
        )
        for end in range(ids.shape[1], made.shape[1]):
            logits = model(input_ids=made[:, :end], pixel_values=pixels, grids=grids).logits
            assert int(logits[0, -1].argmax()) == int(made[0, end])
        other = model(input_ids=ids, pixel_values=tiles(2, 4), grids=grids).logits
        same = model(input_ids=ids, pixel_values=pixels, grids=grids).logits
    assert (other - same).abs().max() > 1e-3, "the image changes nothing"


def test_wrong_number_of_image_tokens_is_told(model: TextHawk2ForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match="the prompt has 3 image tokens, the images make 4"):
        model.embed(prompt(1, 3), tiles(1), torch.tensor([[1, 1]]))


def test_folder_round_trip_with_auto_classes(model: TextHawk2ForConditionalGeneration, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    from models.families.texthawk2.auto import register

    register()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert isinstance(AutoConfig.from_pretrained(tmp_path), TextHawk2Config)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, TextHawk2ForConditionalGeneration)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    assert loaded.language_model.lm_head.weight is loaded.get_input_embeddings().weight
