"""timm's classifiers: how the library is imported, and what is read from names and folders. All else is generic."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import save_weights
from models.families.timm.describe import build_meta, create, describe
from models.families.timm.family import resolve
from models.families.timm.library import timm
from models.families.timm.network import build
from tests.support.source_tree import ROOT

MODULES = timm().list_modules()


def _in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_timm_is_imported_without_torchvision_and_leaves_no_trace_of_one() -> None:
    """transformers, asked afterwards, must not take a stand-in for the library."""
    seen = _in_fresh_python(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "from models.families.timm.library import timm\n"
        "count = len(timm().list_models())\n"
        "assert sys.meta_path == before\n"
        "from transformers.utils import is_torchvision_available\n"
        "print(count, 'torchvision' in sys.modules, is_torchvision_available())"
    )
    count, *rest = seen.split()
    has_torchvision = _in_fresh_python("import importlib.util as u; print(u.find_spec('torchvision') is not None)")
    assert int(count) > 1200
    assert has_torchvision == "True" or rest == ["False", "False"]


def test_threads_import_it_together() -> None:
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(timm())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(module) for module in seen}) == 1
    assert len(seen) == 4


@pytest.mark.parametrize("module", MODULES)
def test_smallest_model_of_every_module_is_built(module: str) -> None:
    """Without memory: names and shapes."""
    from timm.models import get_pretrained_cfg

    names = timm().list_models(module=module)
    name = min(names, key=lambda name: (not name.startswith("test_"), len(name)))
    network = build_meta(name, {}, get_pretrained_cfg(name).to_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) > 1e5
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "gmacs", "size", "resize", "classes", "licence"),
    [
        ("resnet18", 1.814, 224, 235, 1000, "apache-2.0"),
        ("vit_tiny_patch16_224", 1.254, 224, 248, 1000, "apache-2.0"),
        ("ecaresnet50d.miil_in1k", 4.329, 224, 256, 1000, "apache-2.0"),
        ("convnext_tiny.in12k_ft_in1k_384", 13.092, 384, 384, 1000, "apache-2.0"),
    ],
)
def test_name_says_everything(name: str, gmacs: float, size: int, resize: int, classes: int, licence: str) -> None:
    variant = resolve(name)
    picture = variant.io
    assert variant.config["macs"] / 1e9 == pytest.approx(gmacs, rel=1e-3)
    assert (picture.input_size, picture.resize_size, picture.num_classes) == (size, resize, classes)
    assert picture.fit == ("squash" if "384" in name else "crop")
    assert variant.source.licence == licence
    assert picture.label(0) == "tench, Tinca tinca"
    assert variant.weights is None


def test_process_without_torch_hears_the_same() -> None:
    seen = _in_fresh_python(
        "import sys, json\n"
        "from models.families.timm.family import _facts\n"
        "facts = _facts('test_vit', None)\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps(facts))"
    )
    assert json.loads(seen) == describe("test_vit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "close to it: resnet18"),
        ("resnet18.nope", r"it has resnet18\.a1_in1k"),
        ("vit_base_patch16_sapiens2", "no classifier"),
        ("../resnet18", "no model"),
    ],
)
def test_name_that_is_none_is_refused_with_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(name)


def _folder(path: Path, **config: Any) -> Path:
    """As timm's own export and the Hugging Face Hub have it."""
    path.mkdir()
    settings = {"input_size": [3, 64, 64], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 3}
    whole = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": settings, **config}
    (path / "config.json").write_text(json.dumps(whole))
    network = create("test_resnet", {}, {"num_classes": 3, "input_size": [3, 64, 64]})
    save_weights(network.state_dict(), path)
    return path


def test_folder_decides_about_everything(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "flowers", label_names=["n1", "n2", "n3"], label_descriptions={"n2": "a tulip"})
    variant = resolve("flowers", folder)
    assert variant.id == "timm:flowers"
    assert (variant.io.input_size, variant.io.labels) == (64, ("n1", "a tulip", "n3"))
    assert variant.source.licence == "none"
    assert build(variant).num_classes == 3


def test_folder_with_the_weights_of_a_known_tag_has_their_licence(tmp_path: Path) -> None:
    settings = {"tag": "r160_in1k", "input_size": [3, 64, 64], "num_classes": 3}
    assert resolve("mine", _folder(tmp_path / "mine", pretrained_cfg=settings)).source.licence == "apache-2.0"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architecture": "no_such_net", "pretrained_cfg": {}}'])
def test_folder_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json|no_such_net"):
        resolve("mine", tmp_path)


def test_network_without_weights_is_refused_unless_random_ones_are_asked_for() -> None:
    variant = resolve("test_vit")
    with pytest.raises(ValueError, match="random_weights"):
        build(variant)
    assert build(variant, random_weights=True).num_classes == 1000


@pytest.mark.parametrize("kernels", [(3, 5, 5, 7), (9, 3, 7, 5)])
def test_kernel_sizes_of_channel_attention_are_those_of_the_weights(tmp_path: Path, kernels: tuple[int, ...]) -> None:
    """With the parameter names of ECA-Net's official code (compared with it by the family's oracle)."""
    arguments = {"block_args": {"attn_layer": "eca"}}
    settings = {"input_size": [3, 64, 64], "num_classes": 3}
    state = create("resnet18", arguments, settings).state_dict()
    sizes = {f"layer{stage}": size for stage, size in enumerate(kernels, start=1)}
    for name in [name for name in state if ".se.conv." in name]:
        state[name] = torch.randn(1, 1, sizes[name.split(".")[0]])
    official = {f"module.{name}".replace(".se.conv.", ".eca.conv."): tensor for name, tensor in state.items()}
    save_weights(official, tmp_path)
    config = {"architecture": "resnet18", "model_args": arguments, "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = build(resolve("eca", tmp_path))
    assert network.layer3[0].se.conv.kernel_size == (kernels[2],)
    assert network.layer3[0].se.conv.padding == (kernels[2] // 2,)
    assert torch.equal(network.state_dict()["layer4.1.se.conv.weight"], state["layer4.1.se.conv.weight"])
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
