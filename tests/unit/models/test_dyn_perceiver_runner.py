"""The network cut at its exits against the whole of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from models.families.dyn_perceiver.load import load_model, random_model
from models.families.dyn_perceiver.model import DynPerceiver
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.layers.pixels import to_input
from models.registry import find

NANO = find("dyn-perceiver-nano")[1]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model() -> DynPerceiver:
    return load_model(NANO, random_weights=True)


def pictures(count: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def whole(model: DynPerceiver, images: torch.Tensor) -> list[torch.Tensor]:
    return [torch.softmax(logits, 1) for logits in model(to_input(images, NANO.io))]


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_stages_equal_the_whole_bit_for_bit(fold: bool, batch: int) -> None:
    model = load_model(NANO, fold=fold, random_weights=True)
    runner, images = DynPerceiverRunner(model, NANO), pictures(batch)
    state = runner.begin(images)
    for stage, expected in enumerate(whole(model, images)):
        state, (outputs,), confidence = runner.run(state, stage, 1)
        assert torch.equal(outputs["probabilities"], expected)
        assert torch.equal(confidence, expected.amax(1))
    assert state == ()


@pytest.mark.parametrize("name", ["resnet50-x0375", "mobilenetv3-x075"])
def test_published_variants_run_in_stages_too(name: str) -> None:
    variant = find(f"dyn-perceiver-{name}")[1]
    model, images = random_model(variant).eval(), pictures(1, side=224)
    runner = DynPerceiverRunner(model, variant)
    _, outputs, _ = runner.run(runner.begin(images), 0, 4)
    expected = [torch.softmax(logits, 1) for logits in model(to_input(images, variant.io))]
    assert all(torch.equal(got["probabilities"], want) for got, want in zip(outputs, expected, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros((1, 31, 32, 3), dtype=torch.uint8),
        torch.zeros((32, 32, 3), dtype=torch.uint8),
        torch.zeros((1, 3, 32, 32), dtype=torch.uint8),
        torch.zeros((1, 32, 32, 3)),
    ],
    ids=["size", "rank", "layout", "dtype"],
)
def test_wrong_pictures_are_refused_with_the_shape_that_is_needed(model: DynPerceiver, wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(B, 32, 32, 3\)"):
        DynPerceiverRunner(model, NANO).begin(wrong)


def test_input_is_normalised_as_the_card_says() -> None:
    images = pictures(2)
    mean, std = np.array(NANO.io.mean), np.array(NANO.io.std)
    plain = ((images.numpy() / 255.0 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(to_input(images, NANO.io).numpy(), plain, atol=1e-5)
