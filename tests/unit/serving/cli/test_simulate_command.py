"""``vireo simulate``, from a trace to its table, files and picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from msgspec.structs import replace
from PIL import Image
from typer.testing import CliRunner, Result

from models.contract import Family, Variant
from models.io import MAX_TOKENS, ChatIO
from models.operating_points import Point, Seconds, Table
from models.registry import find
from schedulers.admission import BucketLimits
from schedulers.lab.cluster import BEND_AFTER_S
from serving.cli import simulate_command, simulated
from serving.cli.simulated import model_of, read_system, shipped_models
from serving.client.exits import Exit
from serving.config.sections import BendingSettings
from serving.errors import ConfigError
from serving.operating_points import load_table, planned_points, usual_request, usual_work
from tests.support.source_tree import ROOT

MIXED = str(ROOT / "examples/traces/mixed.csv")
SYSTEM = {
    "models": [
        {
            "id": "tiny",
            "tasks": ["classify"],
            "shape": "rows",
            "points": [{"name": "all", "quality": 0.9}],
            "stage_s": [{"1": 0.01, "8": 0.02}],
            "watts": 3.0,
            "max_batch": 8,
            "replicas": 2,
        }
    ],
    "tenants": {"ada": {"weight": 2.0}, "bob": {"joules_per_s": 0.1, "burst_j": 0.05}},
}


def vireo(*arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    simulate_command.register(app)
    result = CliRunner().invoke(app, ["simulate", *arguments], env={"NO_COLOR": "1", "COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_mixed_trace_gives_a_table_for_each_policy_and_task() -> None:
    result = vireo("--trace", MIXED, "--duration", "4", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert "x dyn-perceiver-nano" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines[2:6]] == ["fcfs", "least_loaded", "edf", "vireo"]
    assert {tuple(line[:2]) for line in lines[8:]} == {
        (policy, task)
        for policy in ("fcfs", "least_loaded", "edf", "vireo")
        for task in ("chat", "classify", "images", "infer", "videos")
    }


def test_files_picture_and_json_agree(tmp_path: Path) -> None:
    system, picture, out = tmp_path / "system.json", tmp_path / "p.png", tmp_path / "out"
    system.write_text(json.dumps(SYSTEM))
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp_s,task,tenant\n" + "".join(f"{n / 50},classify,{'ada' * (n % 2)}\n" for n in range(20)))
    asked = ("--trace", str(trace), "--system", str(system), "--policy", "vireo,fcfs", "--latency-ms", "500")
    result = vireo(*asked, "--out", str(out), "--plot", str(picture), "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((out / "summary.json").read_text())
    assert document["replicas"] == {"tiny": 2}
    assert list(document["policies"]) == ["vireo", "fcfs"]
    assert document["policies"]["vireo"]["attainment"] == 1.0
    rows = list(csv.DictReader(io.StringIO((out / "outcomes-vireo.csv").read_text())))
    assert len(rows) == 20
    assert sum(float(row["joules"]) for row in rows) == pytest.approx(document["policies"]["vireo"]["joules"])
    assert {row["state"] for row in rows} == {"answered"}
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    assert vireo(*asked, "--json").stdout == result.stdout


def test_rate_replicas_and_noise_are_obeyed() -> None:
    asked = ("--trace", MIXED, "--duration", "2", "--policy", "vireo", "--json")
    plain = json.loads(vireo(*asked, "--replicas", "2", "--replicas", "vdit-nano=7").stdout)
    assert plain["replicas"]["vdit-nano"] == 7
    assert plain["replicas"]["dit-moe-nano"] == 2
    faster = json.loads(vireo(*asked, "--rate", "1000").stdout)
    assert faster["requests"] == pytest.approx(2000, rel=0.6)
    noisy = [vireo(*asked, "--noise", "0.3", "--seed", seed).stdout for seed in ("1", "1", "2")]
    assert noisy[0] == noisy[1] != noisy[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "best"), "--policy: 'best' is unknown"),
        (("--replicas", "0"), "--replicas '0': need a whole number from 1"),
        (("--replicas", "other=3"), "--replicas: there is no model 'other'"),
        (("--rate", "0"), "the rate is 0"),
        (("--latency-ms", "-5"), "--latency-ms is -5"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_a_line(arguments: tuple[str, ...], message: str) -> None:
    result = vireo("--trace", MIXED, *arguments)
    assert result.exit_code == Exit.USAGE
    assert message in result.stderr


def test_a_bad_line_and_a_task_that_nobody_serves_are_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("timestamp_s,task\n0,classify\nsoon,classify\n")
    assert "trace.csv: line 3: timestamp_s is 'soon'" in vireo("--trace", str(trace)).stderr
    trace.write_text("timestamp_s,task\n0,song\n")
    assert "a model for the task 'song'" in vireo("--trace", str(trace)).stderr
    trace.write_bytes(b"timestamp_s,task\n0,\xff\n")
    assert "no text in UTF-8" in vireo("--trace", str(trace)).stderr


@pytest.mark.parametrize(
    "change",
    [
        {"colour": 1},
        {"shape": "stripes"},
        {"watts": -1.0},
        {"points": []},
        {"stage_s": []},
        {"stage_s": [{"2": 0.1, "1": 0.2}]},
        {"replicas": 0},
        {"replicas": -1},
    ],
)
def test_a_system_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "system.json"
    path.write_text(json.dumps({"models": [{**SYSTEM["models"][0], **change}]}))  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"system\.json: "):
        read_system(path)


@pytest.mark.parametrize("name", ["dit-moe-nano", "vdit-nano", "exvideo-nano", "texthawk2-nano"])
def test_a_simulated_model_costs_what_its_table_says(name: str) -> None:
    family, variant = find(name)
    _check_costs(family, variant, load_table(variant), rel=0.02)


def test_tokens_that_look_at_those_before_them_cost_what_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    family, variant = find("texthawk2-nano")
    table = _priced_too(load_table(variant), "token_steps", 1e-6)
    monkeypatch.setattr(simulated, "load_table", lambda variant: table)
    _check_costs(family, variant, table, rel=1e-6)


def test_what_is_done_before_the_steps_is_no_part_of_them() -> None:
    times = {unit: {1: Seconds(seconds=price)} for unit, price in (("macs", 1.0), ("image_tokens", 0.1))}
    point = Point(settings={"num_inference_steps": 4}, seconds_per_unit=times)
    numbers = simulated._steps("four", point, {"macs": 8.0, "image_tokens": 30.0})
    assert numbers.step_s.of(1) == pytest.approx(2.0)
    assert numbers.decode_s == pytest.approx(3.0)


def _check_costs(family: Family, variant: Variant, table: Table, rel: float) -> None:
    model, work = model_of(family, variant), usual_work(family, variant)
    usual = usual_request(variant.io)
    for mine, point in zip(model.points, planned_points(table), strict=True):
        assert mine.name == point.name
        settings = dict(point.settings)
        if isinstance(variant.io, ChatIO):  # a cap is what an answer may have, not what it usually has
            settings[MAX_TOKENS] = min(usual.max_tokens, settings.get(MAX_TOKENS, usual.max_tokens))
        assert model.alone_s(mine) == pytest.approx(point.cost.latency(work(settings)), rel=rel)


def _priced_too(table: Table, unit: str, seconds: float) -> Table:
    """With one more unit at every point."""
    return replace(
        table,
        points={
            name: replace(point, seconds_per_unit={**point.seconds_per_unit, unit: {1: Seconds(seconds=seconds)}})
            for name, point in table.points.items()
        },
    )


def test_quality_bends_when_it_is_served_to() -> None:
    served = BendingSettings()
    assert {
        "rows": served.rows_after_s,
        "slots": served.chat_after_s,
        "steps": served.jobs_after_s,
    } == BEND_AFTER_S


@pytest.mark.parametrize(
    ("tenant", "limits"),
    [
        ({}, None),
        ({"joules_per_s": 5.0}, (5.0, 5.0, 1e9, 1e9)),
        ({"burst_j": 0.5}, (0.0, 0.5, 1e9, 1e9)),
        ({"seconds_per_s": 0.5}, (1e9, 1e9, 0.5, 0.5)),
        ({"burst_s": 2.0, "joules_per_s": 5.0, "burst_j": 7.0}, (5.0, 7.0, 0.0, 2.0)),
    ],
)
def test_each_limit_of_a_tenant_counts(
    tmp_path: Path, tenant: dict[str, float], limits: tuple[float, float, float, float] | None
) -> None:
    path = tmp_path / "system.json"
    path.write_text(json.dumps({**SYSTEM, "tenants": {"ada": tenant}}))
    joules_per_s, joules_burst, seconds_per_s, seconds_burst = limits or (0.0, 1.0, 0.0, 1.0)
    wanted = BucketLimits(
        joules_per_s=joules_per_s,
        joules_burst=joules_burst,
        seconds_per_s=seconds_per_s,
        seconds_burst=seconds_burst,
    )
    assert read_system(path).tenants["ada"].limits == (wanted if limits else None)


@pytest.mark.parametrize("tenant", [{"burst_j": 0.0}, {"joules_burst": 1.0}])
def test_a_tenant_that_makes_no_sense_is_refused(tmp_path: Path, tenant: dict[str, float]) -> None:
    path = tmp_path / "system.json"
    path.write_text(json.dumps({**SYSTEM, "tenants": {"ada": tenant}}))
    with pytest.raises(ConfigError, match=r"system\.json: "):
        read_system(path)


def test_all_five_tasks_are_shipped() -> None:
    served = {task for model in shipped_models() for task in model.tasks}
    assert served >= {"classify", "infer", "chat", "images", "videos"}
