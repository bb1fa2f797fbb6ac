"""The load generator as a user of the whole system: every surface, good and bad pictures, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import typer
import yaml
from typer.testing import CliRunner

from loadtest.records import Outcome, read_jsonl
from loadtest.workloads.bad_inputs import makers
from serving.cli.loadtest_commands import register
from tests.support.system import System

SURFACES = ("http_classify", "http_oip", "grpc_vireo", "grpc_vireo_stream", "grpc_oip")


def test_every_surface_is_driven_and_every_bad_picture_is_refused(system: System, tmp_path: Path) -> None:
    scenario = {
        "name": "system",
        "seed": 2,
        "mix": [
            {"surface": surface, "images_per_request": 2, "budget": {"latency_ms": 30_000}} for surface in SURFACES
        ],
        "images": {"formats": ["png", "jpeg", "webp"], "bad_share": 0.2, "repeat_share": 0.2},
        "phases": [
            {"name": "open", "arrival": {"kind": "poisson", "rate_per_s": 20}, "duration_s": 8},
            {"name": "closed", "arrival": {"kind": "closed", "concurrency": 2}, "duration_s": 1},
        ],
        "slo": {"deadline_ms": 30_000, "max_failed_share": 0.0},
        "target": {"http_url": system.http_url, "grpc_address": system.grpc_address},
    }
    path, out = tmp_path / "scenario.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(scenario))
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, ["loadtest", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output

    records = read_jsonl(out / "records.jsonl")
    good = [record for record in records if not record.expects_error]
    assert {record.surface for record in good} == set(SURFACES)
    assert {record.outcome for record in good} == {Outcome.OK}
    assert all(len(record.labels) == len(record.exits) == record.num_images == 2 for record in good)
    assert all(record.server is not None and record.server.operating_point for record in good)
    bad = [record for record in records if record.expects_error]
    assert {record.kind for record in bad} == set(makers())
    assert {record.outcome for record in bad} == {Outcome.CLIENT_ERROR}
    assert all(record.error_code for record in bad)
    summary = json.loads((out / "summary.json").read_text())["summary"]
    # Drawn digits are not the test set, so this only shows that answers belong to the pictures they were asked for.
    assert summary["accuracy"]["value"] > 0.8
    assert summary["server"]["caches"].get("hit", 0) > 0
