"""A checkpoint is loaded exactly, or refused: a check for all shapes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.contract import Family, Variant
from models.testing.jobs import finished, opened
from models.testing.subject import Outputs, Subject, build, example_inputs, expect_close, forward


def weights_fit_exactly(subject: Subject) -> None:
    """Saved weights load and give the same outputs. In each file that the network needs, a tensor that is missing,
    unknown or of another shape is refused."""
    family, variant = subject.family, subject.variant
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "weights"
        if variant.weights is not None:
            shutil.copytree(variant.weights, folder)
        elif "save" in family.parts:
            family.part("save")(subject.network, variant, folder)
        else:
            folder.mkdir()
            save_file(subject.network.state_dict(), folder / "model.safetensors")
        copy = subject.with_weights(variant.with_weights(folder))
        expect_close(_outcome(copy), _outcome(subject), "loaded again")
        files = [file for file in sorted(folder.rglob("*.safetensors")) if _is_needed(family, copy.variant, file)]
        assert files, f"{family.name} is built without any of its weights"
        for file in files:
            whole = file.read_bytes()
            for what, tensors in _spoilt(load_file(file)):
                save_file(tensors, file, {"format": "pt"})
                refused = _is_refused(family, copy.variant)
                assert refused, f"weights with a tensor {what} in {file.relative_to(folder)} are loaded all the same"
            file.write_bytes(whole)


def _outcome(subject: Subject) -> Outputs:
    family, point = subject.family, subject.family.check_point({})
    if family.shape == "job":
        (outputs,) = finished(subject, [opened(subject, 0)])
        return outputs
    if family.shape == "stream":
        ids = torch.arange(8)[None]
        with torch.inference_mode():
            return {"logits": subject.network.language_model(input_ids=ids).logits}
    return forward(subject.runner, example_inputs(subject, 2), [point] * 2)


def _is_needed(family: Family, variant: Variant, file: Path) -> bool:
    """Whether the network needs this file: a folder may hold others too, such as a judge."""
    aside = file.rename(file.with_suffix(".aside"))
    try:
        return _is_refused(family, variant, missing=True)
    finally:
        aside.rename(file)


def _spoilt(state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    name = next(name for name, tensor in state.items() if tensor.ndim)
    yield "missing", {key: tensor for key, tensor in state.items() if key != name}
    yield "too many", {**state, "nobody.knows.me": torch.zeros(1)}
    yield "of another shape", {**state, name: torch.zeros(*state[name].shape, 2)}


def _is_refused(family: Family, variant: Variant, missing: bool = False) -> bool:
    try:
        build(family, variant)
    except ValueError:
        return True
    except OSError:
        return missing
    return False
