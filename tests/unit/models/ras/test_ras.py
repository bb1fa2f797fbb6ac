"""Region-adaptive sampling: dense where it must be, a twin's numbers elsewhere, nothing kept beyond the request."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.methods.attention.dense import DENSE
from models.methods.ras.choice import importances
from models.methods.ras.config import RasConfig, predicted_bytes
from models.methods.ras.forward import ras_forward
from models.methods.ras.state import RasState

GRIDS = [(3, 5, 7), (1, 2, 3), (4, 1, 5)]
STEPS = 8


@pytest.fixture
def model() -> OpenSoraT2V:
    torch.manual_seed(0)
    config = OpenSoraConfig(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, cross_attention_dim=24, caption_channels=8,
        interpolation_scale_thw=(1.0, 1.0, 1.0),
    )  # fmt: skip
    return OpenSoraT2V(config).eval()


def inputs(grid: tuple[int, int, int], rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames, height, width = grid
    latents = torch.randn(rows, 4, frames, 2 * height, 2 * width, generator=generator)
    timestep = torch.full((rows,), 500.0)
    text = torch.randn(rows, 3, 8, generator=generator)
    return latents, timestep, text, torch.ones(rows, 3, dtype=torch.bool)


def state(share: float, guidance_scale: float = 1.0, warmup: int = 1) -> RasState:
    config = RasConfig(share=share, num_warmup_steps=warmup, resets=(0.75,))
    return RasState(config, num_steps=STEPS, guidance_scale=guidance_scale)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rows", [1, 2])
@torch.inference_mode()
def test_share_one_equals_dense_in_every_step(model: OpenSoraT2V, grid: tuple[int, int, int], rows: int) -> None:
    """Within rounding: gathered tokens lie otherwise in memory, and a library may take another kernel for them."""
    kept = state(1.0)
    for step in range(3):
        batch = inputs(grid, rows, seed=step)
        assert step == 0 or kept.choose(step) is not None, "the sparse path is taken"
        sparse = ras_forward(model, *batch, states=[kept], step=step, inner=DENSE)
        torch.testing.assert_close(sparse, model(*batch), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_active_tokens_see_fresh_keys_of_active_and_old_keys_of_other_tokens(model: OpenSoraT2V) -> None:
    """Against a twin that runs every token of the first layer and puts keys and values together by hand."""
    grid, kept = (2, 3, 5), state(0.4)
    first, second = inputs(grid, 1, seed=1), inputs(grid, 1, seed=2)
    ras_forward(model, *first, states=[kept], step=0, inner=DENSE)
    chosen = kept.choose(1)
    assert chosen is not None
    assert len(chosen) == 12
    seen: list[list[Tensor]] = []

    class Recording:
        def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
            seen.append([k.clone(), v.clone()])
            return DENSE(q, k, v, layer=layer)

    model(*first, attention=Recording())
    model(*second, attention=Recording())
    ras_forward(model, *second, states=[kept], step=1, inner=Recording())
    is_active = torch.zeros(30, dtype=torch.bool)
    is_active[chosen] = True
    for old, new, merged in zip(seen[0], seen[2], seen[4], strict=True):  # layer 0 of each pass
        expected = torch.where(is_active[None, :, None, None], new, old)
        torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_tokens_that_are_not_run_give_their_last_output(model: OpenSoraT2V) -> None:
    grid, kept = (2, 3, 5), state(0.4)
    before = ras_forward(model, *inputs(grid, 2, seed=1), states=[kept], step=0, inner=DENSE).clone()
    chosen = kept.choose(1)
    assert chosen is not None
    after = ras_forward(model, *inputs(grid, 2, seed=2), states=[kept], step=1, inner=DENSE)
    changed = (after - before).abs().amax(1, keepdim=True) > 0
    by_token = changed.reshape(2, 2, 3, 2, 5, 2).amax((3, 5)).flatten(1)
    assert torch.equal(by_token, torch.zeros_like(by_token).index_fill(1, chosen, True))


@torch.inference_mode()
def test_batch_of_requests_equals_each_alone(model: OpenSoraT2V) -> None:
    grid, guidance = (3, 5, 7), 3.0
    together, alone = [state(0.5, guidance) for _ in "ab"], [state(0.5, guidance) for _ in "ab"]
    for step in range(STEPS):
        each = [inputs(grid, 2, seed=10 * step + request) for request in range(2)]
        joined = [torch.cat(parts) for parts in zip(*each, strict=True)]
        batch = ras_forward(model, *joined, states=together, step=step, inner=DENSE)
        singles = [
            ras_forward(model, *one, states=[kept], step=step, inner=DENSE)
            for one, kept in zip(each, alone, strict=True)
        ]
        torch.testing.assert_close(batch, torch.cat(singles), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_dense_steps_are_the_first_ones_and_the_resets(model: OpenSoraT2V) -> None:
    kept = state(0.5, warmup=2)
    dense = []
    for step in range(STEPS):
        dense.append(kept.choose(step) is None)
        ras_forward(model, *inputs((2, 2, 3), 1, seed=step), states=[kept], step=step, inner=DENSE)
    assert dense == [True, True, False, False, False, False, True, False]


@torch.inference_mode()
def test_step_after_release_is_dense_wherever_it_stands(model: OpenSoraT2V) -> None:
    """As after a resume: nothing is kept, so all tokens must run."""
    kept = state(0.5)
    for step in range(3):
        ras_forward(model, *inputs((2, 2, 3), 1), states=[kept], step=step, inner=DENSE)
    kept.release()
    assert kept.state_bytes == 0
    assert kept.choose(3) is None
    batch = inputs((2, 2, 3), 1, seed=5)
    assert torch.equal(ras_forward(model, *batch, states=[kept], step=3, inner=DENSE), model(*batch))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("requests", [1, 2])
@torch.inference_mode()
def test_held_bytes_are_those_predicted_whatever_the_batch(model: OpenSoraT2V, rows: int, requests: int) -> None:
    kept = [state(0.5) for _ in range(requests)]
    for step in range(3):
        ras_forward(model, *inputs((3, 5, 7), rows * requests), states=kept, step=step, inner=DENSE)
    expected = predicted_bytes(num_layers=2, num_tokens=105, width=24, patch_values=16, rows=rows, itemsize=4)
    assert [one.state_bytes for one in kept] == [expected] * requests
    for one in kept:
        assert sum(tensor.untyped_storage().nbytes() for tensor in one.tensors()) == expected, "no view of a batch"


def test_importance_falls_with_spread_and_rises_with_every_step_left_out() -> None:
    config = RasConfig(starvation_scale=0.5)
    output = torch.tensor([[1.0, -1.0], [3.0, -3.0], [1.0, -1.0]])
    got = importances(output, torch.tensor([0.0, 0.0, 2.0]), config)
    torch.testing.assert_close(got, torch.tensor([1.0, 1 / 3, torch.e]), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_no_token_is_left_out_for_ever(model: OpenSoraT2V) -> None:
    kept = RasState(RasConfig(share=0.3, num_warmup_steps=1, resets=(), starvation_scale=1.0), num_steps=40)
    run = torch.zeros(30, dtype=torch.bool)
    for step in range(20):
        chosen = kept.choose(step)
        if chosen is not None:
            run[chosen] = True
        ras_forward(model, *inputs((2, 3, 5), 1, seed=step), states=[kept], step=step, inner=DENSE)
    assert bool(run.all())


@torch.inference_mode()
def test_choice_follows_the_guided_prediction(model: OpenSoraT2V) -> None:
    """Branches share one choice: that of what the sampler is given."""
    kept = state(0.5, guidance_scale=4.0)
    kept.finish(torch.tensor([[[1.0, -1.0], [0.0, 0.0]], [[1.0, -1.0], [0.5, -0.5]]]), None)
    chosen = kept.choose(1)
    assert chosen is not None
    assert chosen.tolist() == [0], "spreads are 1 and 2 after guidance; 1 and 0, 1 and 0.5 before it"


@pytest.mark.parametrize(
    "wrong", [{"share": 0.0}, {"share": 1.1}, {"num_warmup_steps": 0}, {"resets": (2.0,)}, {"epsilon": 0.0}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RasConfig(**wrong)  # type: ignore[arg-type]


@torch.inference_mode()
def test_rows_must_divide_among_requests(model: OpenSoraT2V) -> None:
    with pytest.raises(ValueError, match="3 rows for 2 requests"):
        ras_forward(model, *inputs((1, 2, 3), 3), states=[state(0.5), state(0.5)], step=0, inner=DENSE)
