"""Rows of attacked pictures count what was answered, and each says which call measured it."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from loadtest.adversarial.runs import Plan, Record
from tests.benchmarks import bench_attacks

PLAIN: dict[str, Any] = {"int": 1, "str": "x", "float": 1.0, "bool": False}


def record(**changes: Any) -> Record:
    made = {one.name: PLAIN.get(str(one.type), ()) for one in fields(Record)}
    return Record(**{**made, "model": "texthawk2-nano", "attack": "delayed-eos", "task": "word", **changes})


def row(*records: Record) -> dict[str, Any]:
    return {one["task"]: one for one in bench_attacks.rows(records)}["all"]


def test_an_answer_that_reached_the_cap_has_no_end_to_count() -> None:
    found = row(record(clean_tokens=7, tokens=512, is_at_cap=True), record(clean_tokens=7, tokens=15))
    assert found["tokens"] == (512 + 16) / 2
    assert found["clean_tokens"] == 8
    assert found["amplification"]["value"] == pytest.approx((512 + 16) / 16)


def test_a_shared_patch_is_judged_on_what_it_never_saw() -> None:
    made_on = record(attack="universal-patch", clean_tokens=1, tokens=511, attacker_j=4.0)
    unseen = record(attack="universal-patch", clean_tokens=1, tokens=1, is_held_out=True, attacker_j=0.0)
    found = row(made_on, unseen)
    assert (found["pictures"], found["tokens"], found["attacker_j"]) == (1, 2.0, 2.0)


def test_the_picture_that_is_kept_is_of_its_own_run_and_never_one_that_a_patch_was_made_on(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "run"
    stale = kept / "texthawk2-nano" / "universal-patch-caption-07.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    (stale.parent / "delayed-eos-word-00.png").write_bytes(b"another attack's")
    folder.mkdir()
    for index in range(3):
        (folder / f"{index:02d}.png").write_bytes(b"picture %d" % index)
    patch = {"attack": "universal-patch", "clean_tokens": 1}
    done = [
        record(**patch, index=0, tokens=500),
        record(**patch, index=1, tokens=9, is_held_out=True),
        record(**patch, index=2, tokens=3, is_held_out=True),
    ]
    bench_attacks._keep_picture(kept, folder, done)
    assert {path.name: path.read_bytes() for path in stale.parent.iterdir()} == {
        "universal-patch-word-01.png": b"picture 1",
        "delayed-eos-word-00.png": b"another attack's",
    }
    bench_attacks._keep_picture(kept, folder, [record(attack="noise", tokens=500), *done[:0]])
    assert not list(kept.rglob("noise*"))


def test_calls_that_work_on_a_run_are_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> list[Record]:
        (tmp_path / "00.json").write_text("{}")
        return [record()]

    monkeypatch.setattr(bench_attacks, "run", run)
    plan = Plan(model="texthawk2-nano", attack="delayed-eos", iterations=1)
    for call in ("interrupted", "finishing", "reading"):
        if call == "finishing":
            (tmp_path / "00.json").unlink()
        bench_attacks._attacked(Namespace(pause_while=None), None, plan, [None], tmp_path, {"command": call})  # type: ignore[arg-type, list-item]
    made_by = json.loads((tmp_path / bench_attacks.CALLS_FILE).read_text())
    assert [one["command"] for one in made_by] == ["interrupted", "finishing"]


def test_records_leave_their_long_lists_in_the_run_s_folder() -> None:
    plain = bench_attacks._plain(record(token_ids=(1, 2), log_p_ends=(-1.0,)))
    assert not set(plain) & set(bench_attacks.UNSHOWN)
    assert Record(**plain).token_ids == ()
