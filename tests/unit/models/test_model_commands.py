"""The model commands as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from models.contract import Family, LazyRef, Variant, check_licence
from models.families.dyn_perceiver.load import random_model
from models.families.nitrofusion.family import resolve as resolve_nitrofusion
from models.families.nitrofusion.networks import build as build_nitrofusion
from models.families.nitrofusion.networks import save as save_nitrofusion
from models.identity import CHECKPOINTS, checkpoint_sha256
from models.operating_points import read_table
from models.registry import find, known_ids
from serving.cli import convert_commands, model_commands
from serving.cli.model_facts import BYTES_PER_NUMBER, kv_numbers_per_token, weights_of

NANO = find("dyn-perceiver-nano")[1]


def app_of_models() -> typer.Typer:
    app = typer.Typer()
    model_commands.register(app)
    convert_commands.register(app)
    return app


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app_of_models(), list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_list_names_every_model() -> None:
    status, output = run("models", "list")
    assert status == 0
    assert all(model_id in output for model_id in known_ids())
    assert "texthawk2-7b chat bring your own SigLIP" in output


def test_list_fits_a_narrow_terminal_and_cuts_no_word() -> None:
    narrow = CliRunner().invoke(app_of_models(), ["models", "list"], env={"COLUMNS": "80", "NO_COLOR": "1"}).output
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    assert all(f"\n{model_id} " in narrow for model_id in known_ids())


def test_show_prints_the_operating_points() -> None:
    status, output = run("models", "show", "dyn-perceiver-nano")
    assert status == 0
    assert all(name in output for name in read_table(NANO).points)


def test_show_says_which_points_are_never_picked_draws_them_and_says_that_nothing_serves_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.cli.run_state.started", list)
    status, output = run("models", "show", "exvideo-nano", "--plot", str(tmp_path / "points.png"))
    assert status == 0
    assert "picked only where a request's own settings ask for it" in output
    assert "not served on this machine now" in output
    assert (tmp_path / "points.png").read_bytes().startswith(b"\x89PNG")


def test_show_as_json_is_the_table() -> None:
    status, output = run("models", "show", "dyn-perceiver-nano", "--json")
    assert status == 0
    assert NANO.weights is not None
    assert json.loads(output)["checkpoint_sha256"] == checkpoint_sha256(NANO.weights)


def test_show_of_a_published_chat_model_gives_its_limits_and_how_to_get_weights() -> None:
    status, output = run("models", "show", "texthawk2-7b")
    assert status == 0
    assert "bring your own (vireo convert texthawk2)" in output
    assert "8192 tokens" in output
    assert "72 at most and 12 a side" in output
    assert "1168 tokens an image at most" in output


def test_show_of_a_chat_model_with_a_folder_sizes_its_kv_cache(tmp_path: Path) -> None:
    write_chat_folder(tmp_path)
    status, output = run("models", "show", f"texthawk2-nano={tmp_path}")
    assert status == 0
    assert "weights: yours" in output
    assert "16,384 bytes in float32 or 8,192 bytes in bfloat16" in output
    assert str(tmp_path / "README.md") in output


def test_show_of_a_chat_model_as_json(tmp_path: Path) -> None:
    write_chat_folder(tmp_path)
    status, output = run("models", "show", f"texthawk2-nano={tmp_path}", "--json")
    assert status == 0
    shown = json.loads(output)
    assert shown["kv_numbers_per_token"] == 4096
    assert shown["max_model_len"] == find("texthawk2-nano")[1].io.max_model_len
    assert shown["max_image_tokens"] == (12 + 1) * 16


def write_chat_folder(folder: Path) -> None:
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 16, "num_key_value_heads": 2}
    (folder / "config.json").write_text(json.dumps({"text_config": sizes}))
    save_file({"x": torch.zeros(3)}, folder / "model.safetensors")
    (folder / "README.md").write_text("# A model\n")


def test_show_of_a_folder_says_what_is_in_it_and_what_it_needs(tmp_path: Path) -> None:
    variant = resolve_nitrofusion("realism")
    save_nitrofusion(build_nitrofusion(variant, random_weights=True), variant, tmp_path / "sdxl")
    word = f"mine=nitrofusion:realism@{tmp_path / 'sdxl'}"
    status, output = run("models", "show", word)
    assert status == 0
    assert "pipeline: StableDiffusionXLPipeline" in output
    assert "network unet: 0." in output
    assert "memory: weights" in output
    shown = json.loads(CliRunner().invoke(app_of_models(), ["models", "show", word, "--json"]).output)
    names = {part["name"]: part for part in shown["components"]}
    assert set(names) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert shown["memory"]["weights_bytes"]["float32"] == 4 * sum(part["parameters"] for part in names.values())
    assert shown["memory"]["request_bytes"] > 0
    assert [setting["refused"] for setting in shown["settings"]] == [{}]


def test_show_says_which_values_the_usual_request_cannot_have() -> None:
    status, output = run("models", "show", "vdit-nano")
    assert status == 0
    assert "With all else as usual not consistency: num_inference_steps is 20" in output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("dyn-perceiver-nano", "--size", "64x64", "--max-batch", "2"),
            "--size, --max-batch: for models that take several",
        ),
        (("vdit-nano", "--size", "64"), "write WIDTHxHEIGHT"),
    ],
)
def test_calibration_by_requests_is_for_models_that_take_steps(options: tuple[str, ...], told: str) -> None:
    status, output = run("calibrate", *options)
    assert status == 2
    assert told in output


@pytest.mark.parametrize("is_named", [True, False])
def test_calibrating_draws_the_points_beside_the_table_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    assert NANO.weights is not None
    for name in ("operating_points.json", "model.safetensors"):
        shutil.copy(NANO.weights / name, tmp_path / name)
    monkeypatch.setattr(model_commands, "_CALIBRATE", LazyRef(f"{__name__}:nothing_to_measure"))
    target = tmp_path / ("elsewhere/p.png" if is_named else "operating_points.png")
    status, output = run(
        "calibrate", f"{NANO.id}={tmp_path}", *(("--plot", str(target)) if is_named else ()), "--quiet"
    )
    assert status == 0, output
    assert f"drawn in {target}" in output
    assert target.read_bytes().startswith(b"\x89PNG")


def nothing_to_measure(family: Family, variant: Variant, **options: Any) -> Path:
    assert variant.weights is not None
    return variant.weights / "operating_points.json"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"text_config": {"hidden_size": "x"}}'])
def test_show_of_a_chat_model_with_a_broken_config_ends_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    status, output = run("models", "show", f"texthawk2-nano={tmp_path}")
    assert status == 2
    assert "config.json" in output
    assert "Traceback" not in output


def test_weights_that_are_missing_are_said_to_be(tmp_path: Path) -> None:
    family, nano = find("texthawk2-nano")
    assert weights_of(family, nano.with_weights(tmp_path)) == "not here: no model.safetensors"
    assert weights_of(family, nano.with_weights(CHECKPOINTS / "none")) == "not here: make train-texthawk2-nano"


@pytest.mark.parametrize(("model_id", "dtype"), [("texthawk2-nano", "float32"), ("texthawk2-7b", "bfloat16")])
def test_the_page_on_deployment_sizes_the_kv_cache_as_the_models_are(model_id: str, dtype: str) -> None:
    from models.families.texthawk2.config import TextHawk2Config
    from models.training.texthawk2.nano import nano_config

    config = TextHawk2Config() if model_id == "texthawk2-7b" else nano_config(1000, *range(6))
    per_token = kv_numbers_per_token(config.to_dict()) * BYTES_PER_NUMBER[dtype]
    context = find(model_id)[1].io.max_model_len
    row = (
        f"| `{model_id}` | {dtype} | {per_token:,} | {context:,} tokens, {per_token * context >> 20} MiB "
        f"| {(4096 << 20) // (per_token * context)} |"
    )
    assert row in (Path(__file__).parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_show_of_an_unknown_model_names_the_chat_models_too() -> None:
    status, output = run("models", "show", "no-such-model")
    assert status == 2
    assert "texthawk2-nano" in output


@pytest.mark.parametrize("command", ["models show", "train", "calibrate"])
def test_unknown_model_ends_in_one_line_not_a_traceback(command: str) -> None:
    status, output = run(*command.split(), "no-such-model")
    assert status == 2
    assert "unknown model 'no-such-model'; known models: dyn-perceiver-nano" in output
    assert "Traceback" not in output


def test_published_model_without_weights_says_what_to_do() -> None:
    assert run("models", "show", "dyn-perceiver-regnety-800mf")[0] == 0
    status, output = run("calibrate", "dyn-perceiver-regnety-800mf")
    assert status == 2
    assert "vireo convert" in output
    status, output = run("train", "dyn-perceiver-regnety-800mf")
    assert status == 2
    assert "needs ImageNet" in output


def test_convert_writes_safetensors_that_fit(tmp_path: Path) -> None:
    source = tmp_path / "published.pth"
    torch.save({"model": random_model(NANO).state_dict(), "epoch": 1}, source)
    status, output = run("convert", "dyn-perceiver", str(source), "--model", NANO.id, "--out", str(tmp_path / "out"))
    assert status == 0, output
    assert "tensors written" in output
    assert len(checkpoint_sha256(tmp_path / "out")) == 64


def test_convert_refuses_weights_of_another_model_and_missing_files(tmp_path: Path) -> None:
    source = tmp_path / "nano.pth"
    torch.save(random_model(NANO).state_dict(), source)
    words = ["--model", "dyn-perceiver-resnet50-x0375", "--out", str(tmp_path / "o"), "--accept-licence"]
    status, output = run("convert", "dyn-perceiver", str(source), *words)
    assert status == 2
    assert "weights do not fit" in output
    assert not (tmp_path / "o").exists()
    status, output = run(
        "convert", "dyn-perceiver", str(tmp_path / "gone.pth"), "--model", NANO.id, "--out", str(tmp_path / "o")
    )
    assert status == 2
    assert "is not a file" in output


PUBLISHED = "dyn-perceiver-regnety-800mf"


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "dyn-perceiver", "{folder}/a.pth", "--model", PUBLISHED, "--out", "{folder}/out"],
        ["calibrate", PUBLISHED + "={folder}"],
    ],
)
def test_weights_without_an_open_licence_are_not_read_unasked(words: list[str], tmp_path: Path) -> None:
    words = [word.format(folder=tmp_path) for word in words]
    with pytest.raises(ValueError, match=r"licence 'none'.*--accept-licence") as refusal:
        check_licence(find(PUBLISHED)[1], is_accepted=False)
    assert run(*words) == (2, f"vireo: {refusal.value}")
    assert not list(tmp_path.iterdir())
    status, output = run(*words, "--accept-licence")
    assert (status, "licence" in output) == (2, False), "the next thing that is wrong: there are no weights"


def test_conversion_of_another_familys_model_is_refused(tmp_path: Path) -> None:
    words = ["--vision", str(tmp_path), "--language", str(tmp_path), "--out", str(tmp_path / "o")]
    status, output = run("convert", "texthawk2", *words, "--model", NANO.id)
    assert (status, output) == (2, f"vireo: '{NANO.id}' is no model of texthawk2; those are texthawk2-7b")


def test_train_and_calibrate_into_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    status, output = run("train", NANO.id, "--out", str(out), "--steps", "1")
    assert status == 0, output
    assert f"vireo calibrate {NANO.id}={out}" in output
    assert (out / "README.md").is_file()
    assert not (out / "operating_points.json").exists()


@pytest.mark.parametrize(
    "command",
    [
        "models",
        "models list",
        "models show",
        "train",
        "calibrate",
        "convert",
        "convert dyn-perceiver",
        "convert texthawk2",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    status, output = run(*command.split(), "--help")
    assert status == 0
    assert len(output) > 100
