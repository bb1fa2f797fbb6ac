"""``vireo moe status`` against the front door with a fake behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from models.contract import ExpertFacts
from serving.cli import moe_commands
from serving.client.exits import Exit
from serving.delivery.job.experts import ExpertReport, PlacedFacts
from serving.front.auth import Authenticator
from tests.support.fake_service import FakeService, make_card
from tests.support.served_door import ServedDoor, served

FACTS = ExpertFacts(layers=2, experts=4, chosen=2, shared=1, parameters=9000, active_parameters=4000)
MOE = replace(make_card("moe"), experts=FACTS)
EARLY, LATE = np.array([[4, 4, 4, 4], [16, 0, 0, 0]]), np.array([[0, 8, 4, 4], [4, 4, 4, 4]])


def _service(*reports: ExpertReport) -> FakeService:
    service = FakeService((make_card("other"), MOE))
    service.expert_reports = reports
    return service


@pytest.fixture
def door() -> Iterator[ServedDoor]:
    report = ExpertReport(slices=2, distinct=5.0, phases={"early": EARLY, "late": LATE}, tenants={"ada": EARLY + LATE})
    with served(_service(report)) as door:
        yield door


def vireo(*arguments: str) -> Result:
    app = typer.Typer()
    moe_commands.register(app)
    result = CliRunner().invoke(app, ["moe", "status", *arguments], env={"NO_COLOR": "1", "COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_table_has_a_line_for_each_layer_of_the_first_model_with_experts(door: ServedDoor) -> None:
    result = vireo("--url", door.url)
    assert result.exit_code == 0, result.stderr
    facts, lately, head, first, second = result.stdout.splitlines()
    assert facts == "moe: 2 layers of 4 experts and 1 shared, 2 a token; 4,000 of 9,000 parameters active"
    assert "2 slices, 2.5 distinct experts a layer; balance of phases: early 0.40, late 0.67" in lately
    assert head.split()[0] == "layer"
    assert first.split() == ["0", "32", "1", "38%", "0.67", "▃█▆▆"]
    assert second.split() == ["1", "32", "0", "62%", "0.40", "█▂▂▂"]


def test_placement_is_a_line_of_its_own() -> None:
    placed = PlacedFacts(version=3, num_ranks=2, num_slots=6, moves=4, failed=0, rank_loads=(0.75, 0.25))
    with served(_service(ExpertReport(slices=1, distinct=1.0, phases={"early": EARLY}, placed=placed))) as door:
        result = vireo("--url", door.url)
    assert "placement 3: 6 slots a layer on 2 ranks, which do 75%, 25% of the work; 4 moves" in result.stdout


def test_json_is_what_the_server_sent_and_the_picture_is_drawn(door: ServedDoor, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    result = vireo("--model", "moe", "--json", "--png", str(path), "--url", door.url)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert [phase["loads"] for phase in document["phases"]] == [EARLY.tolist(), LATE.tolist()]
    with Image.open(path) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 16) or []}
    assert {(68, 1, 84), (33, 145, 140), (253, 231, 37)} <= colours  # none, the mean, and twice as much or more


def test_watch_shows_it_again_until_it_is_interrupted(door: ServedDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[float] = []

    def sleep(seconds: float) -> None:
        shown.append(seconds)
        if len(shown) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(moe_commands.time, "sleep", sleep)
    assert vireo("--watch", "--url", door.url).exit_code == Exit.INTERRUPTED
    assert len(shown) == 2


@pytest.mark.parametrize(("words", "code", "says"), [
    (["--model", "other"], Exit.REFUSED, "other has no experts"),
    (["--png", "map.jpg"], Exit.USAGE, "must end in .png"),
    (["--png", "nowhere/map.png"], Exit.USAGE, "cannot write"),
])  # fmt: skip
def test_mistakes_are_one_line(words: list[str], code: Exit, says: str, door: ServedDoor) -> None:
    result = vireo(*words, "--url", door.url)
    assert (result.exit_code, says in result.stderr) == (code, True), result.stderr


def test_nothing_ran_and_no_replica_answers() -> None:
    with served(_service(ExpertReport())) as door:
        assert "no slice ran in the last 60 s" in vireo("--url", door.url).stdout
        assert vireo("--png", "map.png", "--url", door.url).exit_code == Exit.FAILED
    with served(_service()) as door:
        assert vireo("--url", door.url).exit_code == Exit.BUSY


def test_only_an_admin_sees_it() -> None:
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ada", "bob")}
    with served(_service(ExpertReport()), Authenticator(keys, False, admins=("ada",))) as door:
        assert vireo("--url", door.url, "--key", "ada").exit_code == 0
        result = vireo("--url", door.url, "--key", "bob")
    assert (result.exit_code, "key of an admin" in result.stderr) == (Exit.REFUSED, True)
