"""A decoder smaller than its encoder: built from its config, begun from a larger one, same latents."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch

from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.loading import load_vae, save_network
from models.families.vdit.vae_config import CausalVaeConfig
from models.families.vdit.vae_memory import predicted_peak_bytes
from models.training.vdit.decoder_stage import DECODING, take_over, take_step, train, with_decoder_of
from models.training.vdit.latents_stage import load_vae as load_trained
from models.training.vdit.nano import nano_vae, with_small_decoder
from models.training.vdit.vae_stage import Optimizers, save


def _large() -> CausalVae:
    torch.manual_seed(0)
    return CausalVae(dataclasses.replace(nano_vae(), hidden_size=8, scale_factor=1.25))


def test_a_small_decoder_has_widths_and_blocks_of_its_own_and_loads_from_its_folder(tmp_path: Path) -> None:
    small = with_decoder_of(_large())
    widths = [[block.conv2.conv.weight.shape[0] for block in stage.block] for stage in small.decoder.up]
    blocks, wide = small.config.decoder_blocks, small.config.decoder_widths
    assert widths == [[width] * count for width, count in zip(wide, blocks, strict=True)]
    save_network(small, dataclasses.asdict(small.config), tmp_path, torch.float32)
    loaded = load_vae(tmp_path)
    assert loaded.config == small.config
    latents = torch.randn(1, 8, 2, 2, 2)
    torch.testing.assert_close(loaded.decode(latents), small.decode(latents), atol=1e-4, rtol=1e-4)
    assert loaded.decode(latents).shape == (1, 3, 5, 16, 16)


def test_a_config_without_these_fields_has_the_published_decoder() -> None:
    config = CausalVaeConfig.from_dict({"hidden_size": 128, "num_res_blocks": 2})
    assert config.decoder_widths == config.encoder_widths == (128, 256, 512, 512)
    assert config.decoder_blocks == (3, 3, 3, 3)


def test_a_decoder_is_predicted_to_hold_what_its_own_widths_and_blocks_need() -> None:
    large = nano_vae()
    narrow = dataclasses.replace(large, decoder_hidden_size_mult=(1, 1, 2, 3))
    assert predicted_peak_bytes(narrow, 29, 64, 64) < predicted_peak_bytes(large, 29, 64, 64)
    without = with_small_decoder(large)
    with_block = dataclasses.replace(without, decoder_res_blocks=(1, 1, 1, 1))
    assert predicted_peak_bytes(without, 29, 64, 64) < predicted_peak_bytes(with_block, 29, 64, 64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_hidden_size_mult": (1, 2)}, "decoder_hidden_size_mult has 2 entries"),
        ({"decoder_res_blocks": (1, 1, 1)}, "decoder_res_blocks has 3 entries"),
        ({"decoder_res_blocks": (0, 1, 1, 1)}, "level 0 of the decoder has no block that changes the width"),
        ({"norm_num_groups": 8, "decoder_hidden_size_mult": (1, 1, 1, 1), "hidden_size": 12}, "does not divide 12"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(nano_vae(), **fields)  # type: ignore[arg-type]


def test_a_small_decoder_keeps_the_latents_and_takes_over_what_fits() -> None:
    large = _large()
    small = with_decoder_of(large)
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    torch.testing.assert_close(small.encode(clip).mode(), large.encode(clip).mode())
    assert small.config.scale_factor == large.config.scale_factor
    torch.testing.assert_close(small.post_quant_conv.conv.weight, large.post_quant_conv.conv.weight)
    torch.testing.assert_close(small.decoder.mid.block_1.conv1.conv.weight, large.decoder.mid.block_1.conv1.conv.weight)


def test_of_other_widths_the_common_channels_are_taken_over() -> None:
    new, old = torch.zeros(2, 4, 3, 3), torch.ones(3, 2, 3, 3)
    take_over(new, old)
    assert bool((new[:, :2] == 1).all())
    assert bool((new[:, 2:] == 0).all())
    take_over(new, torch.full((2, 4, 5, 5), 7.0))
    assert float(new.max()) == 1.0


def test_only_the_decoder_learns() -> None:
    small = with_decoder_of(_large())
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    optimizers = Optimizers(small, 1e-3)
    take_step(small, torch.rand(1, 3, 5, 16, 16) * 2 - 1)
    optimizers.step(0.5, 100)
    changed = {name for name, tensor in small.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith(DECODING) for name in changed)


def test_an_interrupted_run_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    large = _large()
    kept = with_decoder_of(large)
    with torch.no_grad():
        kept.decoder.conv_in.conv.weight.fill_(0.5)
    save(large, tmp_path)
    (tmp_path / "decoder").mkdir()
    save(kept, tmp_path / "decoder")
    train(argparse.Namespace(out=tmp_path, minutes=1e-9, lr=1e-3, threads=1, seed=5))
    ended = load_trained(tmp_path)
    assert ended.config == kept.config
    assert bool((ended.decoder.conv_in.conv.weight == 0.5).all())
    assert not (tmp_path / "decoder").exists()
