"""Runs leave pictures that a server would see, and a record of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loadtest.adversarial import recipes
from loadtest.adversarial.__main__ import main
from loadtest.adversarial.estimate import estimate
from loadtest.adversarial.figures import ratio_of_means, share
from loadtest.adversarial.perturbation import Patch
from loadtest.adversarial.pictures import Case, cases
from loadtest.adversarial.runs import Plan, batches, read_records, run, state_file
from loadtest.adversarial.victim import Victim
from models.families.texthawk2.tiling import PUBLISHED
from tests.support.chat_models import TILE
from tests.support.synth_fonts import DEJAVU
from tests.support.victims import QUESTIONS, make_pictures

PLAN = Plan(model="tiny", attack="delayed-eos", iterations=3, every=2, seed=5, cap=16, watts=4.0)


def chosen(count: int = 2) -> list[Case]:
    return [Case("word", QUESTIONS[i % 3], "x", picture) for i, picture in enumerate(make_pictures(count))]


def test_a_run_records_what_a_server_would_see(victim: Victim, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    records = run(PLAN, victim, chosen(), tmp_path, on_progress=lambda *step: seen.append(step))
    assert read_records(tmp_path) == records
    assert seen[-1][2] == 3
    for record, case in zip(records, chosen(), strict=True):
        picture = np.asarray(Image.open(tmp_path / f"{record.index:02d}.png"))
        (answer,) = victim.answer(picture[None], [victim.prompt(case.question, TILE, TILE)], max_tokens=16)
        assert record.tokens == answer.num_tokens
        assert record.is_at_cap == (not answer.is_ended)
        assert record.largest_change == np.abs(picture.astype(int) - case.picture).max() <= 8
        assert record.attacker_j == pytest.approx(4.0 * record.attacker_cpu_s, abs=1e-2)
        assert record.attacker_cpu_s > 0
        assert (list(record.token_ids), len(record.log_p_ends)) == (answer.tokens, record.length)
        np.testing.assert_allclose(record.log_p_ends, answer.log_p_ends, atol=1e-3)
        (clean,) = victim.answer(case.picture[None], [victim.prompt(case.question, TILE, TILE)], max_tokens=16)
        assert (list(record.clean_token_ids), len(record.clean_log_p_ends)) == (clean.tokens, record.clean_length)
        assert record.length == answer.num_tokens + answer.is_ended <= 16
        assert record.amplification == record.length / record.clean_length
        assert len(record.losses) == record.iterations


def test_batches_hold_every_picture_once() -> None:
    assert [list(part) for part in batches(7, 3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert sorted(index for part in batches(51, 17) for index in part) == list(range(51))


def test_batches_are_attacked_apart_and_recorded_together(victim: Victim, tmp_path: Path) -> None:
    noise = replace(PLAN, attack="noise", batch=2)
    records = run(noise, victim, chosen(3), tmp_path)
    assert [record.index for record in records] == [0, 1, 2]
    assert [record.batch for record in records] == [2, 1, 2]
    assert read_records(tmp_path) == records
    changes = [
        np.asarray(Image.open(tmp_path / f"{i:02d}.png")).astype(int) - case.picture for i, case in enumerate(chosen(3))
    ]
    assert not (changes[0] == changes[1]).all(), "each picture has noise of its own"


def test_a_run_that_is_over_computes_nothing_anew(victim: Victim, tmp_path: Path) -> None:
    first = run(PLAN, victim, chosen(), tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(PLAN, victim, chosen(), tmp_path) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert state_file(0) in stamps


def test_a_patch_is_made_on_one_half_and_judged_on_the_other(
    victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipes.RECIPES["universal-patch"], space=Patch(16))
    monkeypatch.setattr("loadtest.adversarial.runs.RECIPES", {"universal-patch": recipe})
    records = run(replace(PLAN, attack="universal-patch"), victim, chosen(3), tmp_path)
    assert [record.is_held_out for record in records] == [False, True, False]
    pictures = [np.asarray(Image.open(tmp_path / f"{i:02d}.png")) for i in range(3)]
    assert (pictures[0][-16:, -16:] == pictures[1][-16:, -16:]).all()
    assert (pictures[1][:-16] == chosen(3)[1].picture[:-16]).all()
    assert records[1].attacker_j == 0 < records[2].attacker_j


def test_a_run_waits_where_it_is_told_to(victim: Victim, tmp_path: Path) -> None:
    calls: list[int] = []
    run(PLAN, victim, chosen(), tmp_path, hold=lambda: calls.append(1))
    assert len(calls) >= 2


def test_an_estimate_counts_operations(victim: Victim) -> None:
    told = estimate(PLAN, victim, chosen())
    assert told["gflop"] > 0.01
    assert told["cpu_s"] > 0
    assert told["plan_j"] == pytest.approx(4.0 * told["plan_cpu_s"])


def test_cases_fit_into_one_tile_and_repeat() -> None:
    first, again = (cases("ground_shape", 3, seed=1, limits=PUBLISHED) for _ in range(2))
    assert all(case.picture.shape == (224, 224, 3) for case in first)
    assert [(one.question, one.picture.tobytes()) for one in first] == [
        (one.question, one.picture.tobytes()) for one in again
    ]
    with pytest.raises(ValueError, match="unknown"):
        cases("telepathy", 1, seed=1, limits=PUBLISHED)


def test_records_are_plain_json(victim: Victim, tmp_path: Path) -> None:
    run(PLAN, victim, chosen(1), tmp_path)
    plain = json.loads((tmp_path / "00.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert plain["energy_source"] == "estimate"


def test_ratios_are_of_means_and_hold_their_value() -> None:
    ratio = ratio_of_means([10.0, 30.0, 20.0], [1.0, 3.0, 1.0])
    assert ratio["value"] == pytest.approx(12.0)
    assert ratio["low"] <= 12.0 <= ratio["high"]
    assert ratio_of_means([4.0], [2.0]) == {"value": 2.0, "low": 2.0, "high": 2.0}
    with pytest.raises(ValueError, match="one of each"):
        ratio_of_means([1.0], [])
    assert share([True, False])["value"] == 0.5


def test_a_folder_of_another_run_is_refused(victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(PLAN, victim, chosen(1), tmp_path)
    with pytest.raises(ValueError, match="of another run"):
        run(replace(PLAN, seed=6), victim, chosen(1), tmp_path)
    with pytest.raises(ValueError, match="of another run"):
        run(PLAN, victim, chosen(2), tmp_path)
    other = Victim(victim.network, victim.prompts, weights="others")
    with pytest.raises(ValueError, match="of another run"):
        run(PLAN, other, chosen(1), tmp_path)
    recipe = recipes.RECIPES["delayed-eos"]
    for changed in (replace(recipe, step=0.1), replace(recipe, make=recipes.RECIPES["lingoloop"].make)):
        with monkeypatch.context() as patched:
            patched.setattr("loadtest.adversarial.runs.RECIPES", {"delayed-eos": changed})
            with pytest.raises(ValueError, match="of another run"):
                run(PLAN, victim, chosen(1), tmp_path)
    longer = run(replace(PLAN, iterations=5), victim, chosen(1), tmp_path)
    assert longer[0].is_at_cap or longer[0].iterations == 5


def test_cases_of_long_answers_come_in_three_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.adversarial.pictures.default_fonts", lambda: DEJAVU)
    expected = [
        sum(len(case.expected) for case in cases(f"verbose-{kind}", 4, seed=1, limits=PUBLISHED))
        for kind in ("caption", "description", "list")
    ]
    assert expected == sorted(expected)
    assert expected[0] < expected[1] < expected[2]


def test_the_list_of_attacks_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["adversarial", "list"])
    assert main() == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list(recipes.RECIPES)
    assert [line for line in shown if len(line) > 80 or line[24] != " "] == []
