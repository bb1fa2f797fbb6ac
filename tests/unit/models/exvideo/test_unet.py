from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from models.families.exvideo.unet import extend, extended_transformers, position_id


def tiny_unet() -> UNetSpatioTemporalConditionModel:
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        num_attention_heads=(2, 4),
        layers_per_block=1,
        cross_attention_dim=32,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=6,
    ).eval()


def predict(unet: UNetSpatioTemporalConditionModel, frames: int, side: int = 8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    sample = torch.randn(2, frames, 8, side, side, generator=draw)
    context, ids = torch.randn(2, 1, 32, generator=draw), torch.tensor([[6.0, 127.0, 0.02], [3.0, 3.0, 0.1]])
    with torch.inference_mode():
        out: torch.Tensor = unet(sample, torch.tensor([0.3, 1.2]), context, ids).sample
    return out


@pytest.mark.parametrize("frames", [2, 5, 6])
def test_extended_network_begins_as_the_one_that_it_extends(frames: int) -> None:
    plain = tiny_unet()
    extended = extend(copy.deepcopy(plain), 20)
    assert torch.equal(predict(extended, frames), predict(plain, frames))


def test_extended_network_differs_after_the_base_s_last_frame() -> None:
    plain = tiny_unet()
    assert not torch.equal(predict(extend(copy.deepcopy(plain), 20), 7), predict(plain, 7))


def test_only_a_table_and_a_convolution_are_added() -> None:
    plain = tiny_unet()
    extended = extend(copy.deepcopy(plain), 20)
    paths = list(extended_transformers(extended))
    assert paths == [
        "down_blocks.0.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
    ]
    added = {f"{path}.{name}" for path in paths for name in ("pos_table", "pos_conv.weight", "pos_conv.bias")}
    assert extended.state_dict().keys() - plain.state_dict().keys() == added


def test_positions_are_those_of_exvideo() -> None:
    period = [*range(23, 3, -1), *range(5, 25)]
    assert [position_id(frame, 25) for frame in range(128)] == [*range(25), *period, *period, *period][:128]
    assert [position_id(frame, 8) for frame in range(20)] == [*range(8), *range(6, 0, -1), *range(2, 8)]


def test_what_has_no_position_or_no_neighbour_is_refused() -> None:
    extended = extend(tiny_unet(), 20)
    with pytest.raises(ValueError, match="positions for 20"):
        predict(extended, 21)
    with pytest.raises(ValueError, match="need 2 of each"):
        predict(extended, 1)
    with pytest.raises(ValueError, match="need 2 of each"):
        predict(extended, 4, side=2)
    with pytest.raises(ValueError, match="no temporal transformers"):
        extend(extended, 20)
