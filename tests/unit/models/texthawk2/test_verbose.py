"""texthawk2-nano-verbose: smaller by what mattered least, trained on from anywhere, and as long as its card says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from models.contract import Family, Variant
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.identity import checkpoint_sha256
from models.registry import default_variants, find
from models.training.log import LOG_FILE
from models.training.texthawk2 import language_stage
from models.training.texthawk2.evaluation import answer
from models.training.texthawk2.nano import Sizes
from models.training.texthawk2.synth import describing
from models.training.texthawk2.synth.charset import CHINESE
from models.training.texthawk2.synth.describing import KINDS, judge, scene
from models.training.texthawk2.verbose import evaluate, train
from models.training.texthawk2.verbose.slim import DROPPED_LAYER, slim
from models.training.texthawk2.verbose.train import Plan
from tests.support.synth_fonts import DEJAVU

pytestmark = pytest.mark.usefixtures("one_thread")
WIDE, NARROW = build_nano_tokenizer(CHINESE), build_nano_tokenizer("")
HALF = Sizes(vision_mlp=384, resampler_mlp=256, text_mlp=352)
TILES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8))
GRIDS = [(1, 1), (1, 1)]


def _see_and_speak(model: TextHawk2ForConditionalGeneration) -> None:
    model.encode_images(TILES, GRIDS)
    model.language_model(input_ids=torch.arange(97, 123)[None])


@torch.no_grad()
def _without_half_of_the_units(model: TextHawk2ForConditionalGeneration) -> None:
    for name, module in model.named_modules():
        if name.endswith((".mlp.fc2", ".mlp.down_proj")):
            module.weight[:, torch.randperm(module.in_features)[: module.in_features // 2]] = 0


@torch.no_grad()
def test_units_that_move_nothing_are_those_that_go() -> None:
    torch.manual_seed(0)
    model = language_stage.build_model(WIDE)
    _without_half_of_the_units(model)
    small = slim(model, WIDE, NARROW, _see_and_speak, HALF)
    for ours, theirs in zip(small.encode_images(TILES, GRIDS), model.encode_images(TILES, GRIDS), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    text = "1. a red star, top left"
    ids = [torch.tensor([words.encode(text, add_special_tokens=False)]) for words in (NARROW, WIDE)]
    said, expected = (
        one.language_model(input_ids=given).logits for one, given in zip((small, model), ids, strict=True)
    )
    fewer = NARROW.get_vocab()
    rows = [WIDE.get_vocab()[token] for token in sorted(fewer, key=fewer.__getitem__)]
    torch.testing.assert_close(said, expected[..., rows], rtol=1e-4, atol=1e-4)


def test_layers_behind_the_one_that_goes_move_up() -> None:
    model = language_stage.build_model(WIDE)
    small = slim(model, WIDE, NARROW, _see_and_speak)
    ours, theirs = small.language_model.model.layers, model.language_model.model.layers
    kept = [number for number in range(4) if number != DROPPED_LAYER]
    for layer, number in zip(ours, kept, strict=True):
        assert torch.equal(layer.self_attn.q_proj.weight, theirs[number].self_attn.q_proj.weight)
    assert sum(one.numel() for one in small.parameters()) < 4_000_000


# -- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as texthawk2-nano's, with random weights."""
    folder = tmp_path / "source"
    torch.manual_seed(0)
    language_stage.build_model(WIDE).half().save_pretrained(folder)  # type: ignore[no-untyped-call]
    WIDE.save_pretrained(folder)
    return folder


def test_interrupted_run_goes_on_where_it_was_saved(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "default_fonts", lambda: DEJAVU)
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    monkeypatch.setattr(train, "UNSEEN_PICTURES", 2)
    plan = Plan(steps=3, sight_steps=1, pictures=2)
    out = tmp_path / "out"

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(source, out, plan, on_step=stop)
    done: list[int] = []
    train.train(source, out, plan, on_step=done.append)
    assert done == [3]
    log = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()]
    assert [one["step"] for one in log] == [1, 2, 3, 3]
    assert set(log[0]) >= {f"unseen_{name}" for name in ("sight", *KINDS)} | {f"exact_{kind}" for kind in KINDS}
    saved = TextHawk2ForConditionalGeneration.from_pretrained(out)
    assert saved.config.text_config.num_hidden_layers == 3
    with pytest.raises(ValueError, match="another configuration"):
        train.train(source, out, Plan(steps=4))


def test_answers_are_learnt_by_a_model_that_sees_already(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "default_fonts", lambda: DEJAVU)
    monkeypatch.setattr(train, "UNSEEN_PICTURES", 2)
    towers: list[torch.Tensor] = []
    plan = Plan(steps=3, sight_steps=1, pictures=2)
    run = train.Run(source, tmp_path / "out", plan, lambda done: towers.append(_first_of(run.student.vision_tower)))
    words = _first_of(run.student.language_model)
    run.learn(run.sight, plan.sight_steps)
    assert torch.equal(words, _first_of(run.student.language_model))
    run.student.vision_tower.requires_grad_(False)
    run.learn(run.answers, plan.steps)
    assert torch.equal(towers[0], towers[2])
    assert not torch.equal(words, _first_of(run.student.language_model))


def _first_of(part: torch.nn.Module) -> torch.Tensor:
    return next(iter(part.parameters())).detach().clone()


@torch.no_grad()
def test_sight_is_the_distance_from_the_larger_model(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    monkeypatch.setattr(describing, "default_fonts", lambda: DEJAVU)
    teacher, student, words = train.build_pair(source, seed=1)
    batches = train.draw(np.random.default_rng(0), train.encoder_of(words, student), "train", 2)
    assert float(train.sight_loss(teacher, teacher, batches)) < 1e-6
    assert (
        float(train.sight_loss(teacher, student, batches)) > 1e-4
    )  # fresh weights are small, and so is what their MLPs add
    assert [len(batches[kind].tiles) > 0 for kind in KINDS] == [True, False, False]
    assert len({tuple(batches[kind].grids) for kind in KINDS}) == 1


# -- the committed weights -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verbose() -> tuple[Family, Variant, Path]:
    family, variant = find("texthawk2-nano-verbose")
    assert variant.weights is not None
    return family, variant, variant.weights


Verbose = tuple[Family, Variant, Path]


def test_it_is_small_and_never_served_unasked(verbose: Verbose) -> None:
    _, variant, folder = verbose
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert variant not in [one for _, one in default_variants()]


def test_kinds_of_answers_have_lengths_of_their_own(verbose: Verbose) -> None:
    folder = verbose[2]
    report = json.loads((folder / evaluate.EVALUATION_FILE).read_text())
    assert report["checkpoint_sha256"] == checkpoint_sha256(folder)
    tokens = {kind: report["kinds"][kind]["greedy"]["tokens"] for kind in KINDS}
    assert tokens["caption"]["q95"] < tokens["description"]["q05"]
    assert tokens["description"]["q75"] < tokens["list"]["q25"]
    for kind in KINDS:
        found = report["kinds"][kind]
        assert found["greedy"]["ended"] >= 0.99, kind
        assert found["sampled"]["ended"] >= 0.99, kind
        for name in ("q25", "q50", "q75"):
            assert tokens[kind][name] == pytest.approx(found["greedy"]["expected_tokens"][name], rel=0.25), (kind, name)


def test_the_weights_do_what_the_card_says(verbose: Verbose) -> None:
    """On pictures in other fonts than the evaluation's: greedy lists end, and most shapes that they name are there."""
    family, variant, folder = verbose
    assert family.build is not None
    build: Callable[[Variant], TextHawk2ForConditionalGeneration] = family.build.load()
    rng = np.random.default_rng(5)
    scenes = [scene(rng, "test", DEJAVU) for _ in range(12)]
    examples = [one.example(rng, "list") for one in scenes]
    words = AutoTokenizer.from_pretrained(folder)
    told = list(answer(build(variant), words, examples, max_new_tokens=evaluate.CAP))
    assert all(one.output_tokens < 300 for one in told)
    judged = [judge(one.given, seen.things) for one, seen in zip(told, scenes, strict=True)]
    shapes = [sum(getattr(one, field)["shape"] for one in judged) for field in ("true", "stated")]
    assert shapes[1] > 12
    assert shapes[0] / shapes[1] > 0.3  # of 24 shapes that it might name; guessing is right about one in seven
