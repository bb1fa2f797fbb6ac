"""Layer-wise search of tile masks: the sparsest within the bound, and the file that keeps the choice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.loading import save_network
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.attention.layer_plan import LayerPlan
from models.methods.attention.layer_search import main, relative_loss, search_layers
from models.methods.attention.tile_attention import TileAttention
from models.methods.attention.tile_mask import TileMask
from tests.support import attention_twins as twins

_GRID = (6, 2, 3)


def _model(scales: tuple[float, ...]) -> Callable[[SelfAttention], Tensor]:
    """Layers side by side; the larger its scale, the more a layer suffers from a mask."""
    q, k, v = twins.qkv(36)

    def run(attention: SelfAttention) -> Tensor:
        return torch.stack([scale * attention(q, k, v, layer=layer) for layer, scale in enumerate(scales)])

    return run


def _loss(run: Callable[[SelfAttention], Tensor], references: int, layer: int, num_layers: int) -> float:
    mask = TileMask(num_frames=6, references=references)
    masks = [mask if number == layer else None for number in range(num_layers)]
    return relative_loss(run(TileAttention(masks, _GRID)), run(DENSE))


def test_each_layer_gets_the_sparsest_mask_within_the_bound() -> None:
    run = _model((1.0, 0.3, 3.0))
    bound = _loss(run, 2, 0, 3)
    plan = search_layers(run, num_layers=3, grid=_GRID, max_loss=bound)
    for layer, mask in enumerate(plan.masks):
        within = [k for k in range(6) if TileMask(num_frames=6, references=k).sparsity > 0]
        within = [k for k in within if _loss(run, k, layer, 3) <= bound]
        assert (None if mask is None else mask.references) == min(within, default=None)
    assert plan.masks[1] is not None
    assert plan.masks[1].references == 0
    assert plan.losses[0] == pytest.approx(bound)
    assert plan.loss == pytest.approx(relative_loss(run(TileAttention(plan.masks, _GRID)), run(DENSE)))


def test_bound_of_0_is_dense_and_a_wide_bound_is_the_sparsest() -> None:
    run = _model((1.0, 2.0))
    strict = search_layers(run, num_layers=2, grid=_GRID, max_loss=0.0)
    assert (strict.masks, strict.sparsity, strict.loss) == ((None, None), 0.0, 0.0)
    wide = search_layers(run, num_layers=2, grid=_GRID, max_loss=1e9, references=[3, 1])
    assert [mask and mask.name for mask in wide.masks] == ["1:5", "1:5"]


def test_output_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        search_layers(lambda _: torch.full((2,), float("nan")), num_layers=1, grid=_GRID, max_loss=1.0)
    with pytest.raises(ValueError, match="max_loss is nan"):
        search_layers(_model((1.0,)), num_layers=1, grid=_GRID, max_loss=float("nan"))


def _plan() -> LayerPlan:
    masks = (TileMask.parse("2:4"), None, TileMask.parse("0:6"))
    return LayerPlan(num_frames=6, masks=masks, losses=(0.1, 0.0, 0.2), max_loss=0.25, loss=0.3)


def test_plan_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    _plan().save(path)
    assert LayerPlan.load(path) == _plan()
    attention = LayerPlan.load(path).attention((6, 4, 5))
    assert attention.masks == _plan().masks
    assert attention.achieved_sparsity == pytest.approx(_plan().sparsity)


def test_plan_for_other_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="8 latent frames; this plan is for 6"):
        _plan().attention((8, 4, 5))
    with pytest.raises(ValueError, match="2:4 in a plan for 8"):
        dataclasses.replace(_plan(), num_frames=8)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"layers": [{"mask": "x", "loss": 0.0}]}, {"layers": []}, {"layers": None},
        {"layers": [{"mask": "3:5", "loss": 0.0}]}, {"loss": "NaN"}, {"num_frames": None},
    ],
)  # fmt: skip
def test_file_that_is_no_plan_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "plan.json"
    _plan().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="is no tile plan"):
        LayerPlan.load(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}"])
def test_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no tile plan"):
        LayerPlan.load(path)


def test_command_writes_a_plan_for_a_saved_transformer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = OpenSoraConfig(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, caption_channels=8
    )
    torch.manual_seed(20)
    model = OpenSoraT2V(config)
    save_network(model, config.to_dict(), tmp_path / "model", torch.float32)
    samples = {
        "latents": torch.randn(1, 4, 6, 4, 6),
        "timestep": torch.tensor([500.0]),
        "text": torch.randn(1, 3, 8),
        "text_mask": torch.tensor([[1, 1, 0]]),
    }
    save_file(samples, tmp_path / "samples.safetensors")
    out = tmp_path / "plan.json"
    options = ["--samples", str(tmp_path / "samples.safetensors"), "--max-loss", "10", "--out", str(out)]
    main([str(tmp_path / "model"), *options, "--references", "1", "2"])
    plan = LayerPlan.load(out)
    assert [mask and mask.name for mask in plan.masks] == ["1:5", "1:5"]
    assert "1:5, 1:5" in capsys.readouterr().out
    with torch.inference_mode():
        arguments = (samples["latents"], samples["timestep"], samples["text"], samples["text_mask"].bool())
        sparse = model(*arguments, attention=plan.attention((6, 2, 3)))
        assert plan.loss == pytest.approx(relative_loss(sparse, model(*arguments)), rel=1e-4)
