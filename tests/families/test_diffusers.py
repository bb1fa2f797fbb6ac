"""Folders of diffusers: what is found in them, what is refused, and that slices are the pipeline's own steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import JobState, SettingError
from models.families.diffusers.blocks.wan_ti2v import token_times
from models.families.diffusers.example import example, with_noise
from models.families.diffusers.family import FAMILY, recognise, resolve, weight_files, work
from models.families.diffusers.host import DiffusersRunner
from models.families.diffusers.networks import build, save
from models.folder import components_of as networks_of
from models.io import ClipRequest
from models.registry import find
from models.testing.jobs import finished
from models.testing.subject import Subject
from serving.replica.job.snapshots import restored, take_snapshot
from tests.support import hostile

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(600)]

_STEPS = 4
"""Enough for a solver of second order to begin, to go on and to end."""


@cache
def _subject(name: str) -> Subject:
    return Subject(FAMILY, name)


_CASES = [
    pytest.param(name, has_picture, id=name + {True: "-picture", False: "-words", None: ""}[has_picture])
    for name in FAMILY.examples
    for has_picture in ((True, False) if getattr(resolve(name).io, "picture_is_optional", False) else (None,))
]
"""Each architecture; one whose first frame is optional, with and without."""


def _open(subject: Subject, seed: int = 0, has_picture: bool | None = None, **settings: Any) -> JobState:
    random = np.random.default_rng(seed)
    request = example(subject.variant, random)
    if has_picture is not None:
        request = with_noise(request, random) if has_picture else replace(request, picture=b"")
    runner: DiffusersRunner = subject.runner
    return runner.open(request, subject.family.check_point({"num_inference_steps": _STEPS, **settings}), seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wan 2.2 in miniature, as diffusers writes it."""
    made = tmp_path_factory.mktemp("folders") / "wan"
    variant = resolve("wan22-t2v")
    save(build(variant, random_weights=True), variant, made)
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Wan\n")
    return made


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A copy of it whose small files may be changed."""
    copy = tmp_path / "copy"
    for path in folder.rglob("*"):
        target = copy / path.relative_to(folder)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".safetensors":
            target.symlink_to(path)
        else:
            target.write_bytes(path.read_bytes())
    return copy


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_says_what_it_is(folder: Path) -> None:
    variant = resolve("my-wan", folder)
    assert recognise(folder) == "wan22-t2v"
    assert (variant.id, variant.tasks, variant.source.licence) == ("diffusers:my-wan", ("videos",), "apache-2.0")
    assert [knob.name for knob in FAMILY.of(variant).knobs] == [
        "num_inference_steps",
        "guidance_scale",
        "guidance_scale_2",
        "attention",
        "cache",
    ]
    assert variant.summary == "Wan 2.2 with two experts, clips from prompts"
    found = {part.name: part for part in networks_of(folder, weight_files(variant))}
    assert found.keys() == {"transformer", "transformer_2", "vae", "text_encoder"}
    network = _subject("wan22-t2v").network.networks["transformer"]
    assert found["transformer"].numbers == {"F32": sum(each.numel() for each in network.parameters())}
    assert (variant.io.width, variant.io.height, variant.io.frame_counts, variant.io.fps) == (832, 480, (81,), 16)
    big = resolve("wan22-t2v").io.settled(ClipRequest(prompt="rain"))
    assert work(resolve("wan22-t2v"), big, FAMILY.of(variant).check_point({})).units["macs"] > 0


def test_a_folder_of_something_else_is_none(tmp_path: Path) -> None:
    assert recognise(tmp_path) is None


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "AudioLDMPipeline"}, "AudioLDMPipeline is not run step by step"),
        ("model_index.json", {"expand_timesteps": True}, "expand_timesteps and two experts"),
        ("model_index.json", {"boundary_ratio": "0.9"}, "boundary_ratio is '0.9'; it is the share"),
        ("model_index.json", {"boundary_ratio": 1.5}, r"boundary_ratio is 1\.5; it is the share"),
        ("vae/config.json", {"patch_size": 2}, "packs pixels"),
        ("model_index.json", {"vae": [None, None]}, "needs vae"),
        ("model_index.json", {"vae": ["their_code", "Net"]}, "code that the folder brings"),
        ("model_index.json", {"scheduler": ["diffusers", "HeunDiscreteScheduler"]}, "HeunDiscreteScheduler"),
        ("transformer/config.json", {"quantization_config": {"quant_method": "gguf"}}, r"quantised \(gguf\)"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ("scheduler/scheduler_config.json", {"solver_p": "x"}, "solver_p"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(spoilt: Path, file: str, changes: dict[str, Any], words: str) -> None:
    _change(spoilt / file, **changes)
    with pytest.raises(ValueError, match=words):
        resolve("wan", spoilt)


def test_whatever_its_files_say_a_folder_is_read_or_refused(spoilt: Path) -> None:
    """A traceback, a hang or a hole in memory is neither."""
    files = sorted(path for path in spoilt.rglob("*.json") if path.name.endswith(("index.json", "config.json")))
    refusals: dict[str, str] = {}
    for said in hostile.spoilt(files):
        try:
            find("my-wan", spoilt)
        except ValueError as error:
            refusals[said] = str(error)
    assert len(refusals) > 100
    assert all(refusals.values())
    assert find("my-wan", spoilt)[1].weights == spoilt


def test_a_missing_component_is_named(spoilt: Path) -> None:
    (spoilt / "transformer_2").rename(spoilt / "elsewhere")
    with pytest.raises(ValueError, match="folder transformer_2 is missing"):
        resolve("wan", spoilt)


def test_weights_that_are_missing_or_pickles_are_refused_at_the_start(spoilt: Path) -> None:
    (weights,) = (spoilt / "transformer").glob("*.safetensors")
    index = {"weight_map": {"x": "elsewhere.safetensors"}}
    (spoilt / "transformer" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"elsewhere\.safetensors is missing"):
        resolve("wan", spoilt)
    (spoilt / "transformer" / "model.safetensors.index.json").unlink()
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="is a pickle, which may run code; give transformer as safetensors"):
        resolve("wan", spoilt)


def test_what_is_read_from_a_folder_is_what_was_written(folder: Path) -> None:
    """The latents differ by rounding: weights mapped from a file are aligned otherwise."""
    subject = _subject("wan22-t2v")
    copy = subject.with_weights(subject.variant.with_weights(folder))
    read, written = (each.network.networks.state_dict() for each in (copy, subject))
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], written[name]) for name in read)
    states = [_open(each) for each in (copy, subject)]
    for each, state in zip((copy, subject), states, strict=True):
        finished(each, [state])
    assert float((states[0].kept["latents"] - states[1].kept["latents"]).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["wan-t2v", "wan22-ti2v", "hunyuan15-i2v"])
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"width": 42}, "size"),
        ({"num_frames": 8}, "num_frames"),
        ({"num_frames": 21}, "num_frames"),
        ({"prompt": "a" * 1001}, "prompt"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(name: str, changes: dict[str, Any], field: str) -> None:
    subject = _subject(name)
    usual = subject.variant.io.settled(ClipRequest(prompt="rain"))
    request = replace(usual, **changes)
    with pytest.raises(SettingError) as refused:
        subject.runner.open(request, subject.family.check_point({}), 0)
    assert refused.value.name == field


@pytest.mark.parametrize("settings", [{"guidance_scale": 0.5}, {"guidance_scale": 50}, {"num_inference_steps": 0}])
def test_a_setting_that_does_not_fit_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        _subject("wan-t2v").family.check_point(settings)


@pytest.mark.parametrize(("name", "has_picture"), _CASES)
def test_a_snapshot_goes_on_to_the_bit(name: str, has_picture: bool | None) -> None:
    """After every step, in a fresh state of another attempt, as the replica does."""
    subject = _subject(name)
    whole, state = (_open(subject, has_picture=has_picture) for _ in range(2))
    finished(subject, [whole])
    for step in range(1, _STEPS + 1):
        while state.kept["step"] < step:  # what is made of the request comes first, again in each attempt
            subject.runner.step([state])
        snapshot = take_snapshot(state.kept, step)
        state = _open(subject, has_picture=has_picture)
        state.kept = restored(state.kept, snapshot)
    finished(subject, [state])
    assert torch.equal(state.kept["latents"], whole.kept["latents"])


@pytest.mark.parametrize(("name", "has_picture"), _CASES)
def test_rows_in_company_are_the_same(name: str, has_picture: bool | None) -> None:
    """Two requests in one pass of each step: within rounding of what each is alone."""
    subject = _subject(name)
    alone = [_open(subject, seed, has_picture) for seed in range(2)]
    for state in alone:
        finished(subject, [state])
    together = [_open(subject, seed, has_picture) for seed in range(2)]
    finished(subject, together)
    for one, other in zip(alone, together, strict=True):
        largest = max(1.0, float(one.kept["latents"].abs().max()))
        assert float((one.kept["latents"] - other.kept["latents"]).abs().max()) <= 1e-5 * largest


def test_without_guidance_no_second_pass_is_taken() -> None:
    """diffusers' own text block of Wan fails there; the classic pipeline, which does not, gives the same."""
    from models.families.diffusers.oracle import classic

    subject = _subject("wan-t2v")
    state = _open(subject, guidance_scale=1.0)
    finished(subject, [state])
    point = state.point
    latents, _ = classic(subject.network, subject.variant, state.request, point, 0)
    assert torch.equal(latents, state.kept["latents"])


def test_an_autoencoder_serves_one_request_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan's keeps what it has seen of a clip in itself, and prompts, previews and clips have threads of their own."""
    subject = _subject("wan-i2v")
    vae = subject.network.networks["vae"]
    runner = DiffusersRunner(subject.network, subject.variant)
    calls: list[tuple[str, bool]] = []

    def watched(name: str) -> Callable[..., Any]:
        run = getattr(vae, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, runner._autoencoder.locked()))
            return run(*args, **kwargs)

        return call

    for name in ("encode", "decode"):
        monkeypatch.setattr(vae, name, watched(name))
    state = _open(subject, num_inference_steps=1)
    while runner.remaining(state):
        runner.step([state])
        runner.preview(state)
    assert set(calls) == {("encode", True), ("decode", True)}
    assert not runner._autoencoder.locked()


def test_two_classes_name_the_folder_whose_picture_is_optional(tmp_path: Path) -> None:
    """The published one says ``WanPipeline``; ``WanImageToVideoPipeline`` makes clips from a picture with the same."""
    variant = resolve("wan22-ti2v")
    save(build(variant, random_weights=True), variant, tmp_path)
    for name in ("WanPipeline", "WanImageToVideoPipeline"):
        _change(tmp_path / "model_index.json", _class_name=name)
        found = resolve("my-wan", tmp_path)
        assert (found.io.takes_picture, found.io.needs_picture, recognise(tmp_path)) == (True, False, "wan22-ti2v")
        assert (found.io.width, found.io.height, found.io.multiple, found.io.fps) == (1280, 704, 32, 24)


def test_each_token_has_a_time_of_its_own() -> None:
    """Those of the first frame are done."""
    latents = torch.zeros(2, 8, 3, 4, 6)
    times = token_times(torch.tensor(700), latents, (1, 2, 2), is_begun=True)
    assert (times.shape, times.dtype) == ((2, 18), torch.float32)
    assert times[:, :6].unique().tolist() == [0.0]
    assert times[:, 6:].unique().tolist() == [700.0]
    assert token_times(torch.tensor(700), latents, (1, 2, 2), is_begun=False).unique().tolist() == [700.0]


def test_the_expert_changes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is asked at each decision makes a scheduler but once for a number of steps."""
    subject = _subject("wan22-t2v")
    made: list[Any] = []
    make = DiffusersRunner._scheduler
    monkeypatch.setattr(DiffusersRunner, "_scheduler", lambda self: made.append(None) or make(self))
    state, phases = _open(subject), []
    while subject.runner.remaining(state):
        phases.append(subject.runner.expert_phase(state))
        subject.runner.step([state])
    assert phases == sorted(phases)
    assert set(phases) == {"transformer", "transformer_2"}
    made.clear()
    assert {subject.runner.expert_phase(_open(subject)) for _ in range(3)} == {"transformer"}
    assert not made


@pytest.mark.parametrize("name", ["wan-t2v", "ltx-t2v"])
def test_preview_leaves_the_autoencoder_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made beside slices, one of which may be decoding, and Wan's autoencoder keeps what it sees of a clip."""
    subject = Subject(FAMILY, name)
    state = _open(subject)
    monkeypatch.setattr(subject.runner._components.networks["vae"], "decode", None)
    assert subject.runner.preview(state).dtype == np.uint8
