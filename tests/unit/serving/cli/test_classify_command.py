"""``vireo classify`` as a user types it, against the front door with a fake behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from serving.client.exits import Exit
from serving.front.auth import Authenticator
from serving.tasks.classify.cli import exit_code_of, register
from tests.support.fake_service import FakeService, make_card
from tests.support.served_door import served

DIGIT = Path(__file__).parents[4] / "examples" / "digit-7.png"


def run(service: FakeService, *words: str, authenticator: Authenticator | None = None) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    with served(service, authenticator) as door:
        return CliRunner().invoke(app, ["classify", str(DIGIT), "--url", f"{door.url}/", *words])


@pytest.mark.parametrize("words", [(), ("--model", "second")])
def test_first_model_that_classifies_is_asked_unless_one_is_named(words: tuple[str, ...]) -> None:
    service = FakeService([make_card("first"), make_card("second")])
    result = run(service, *words)
    assert result.exit_code == 0, result.output
    assert [request.model for request in service.requests] == ["second" if words else "first"]


def test_where_nothing_classifies_that_is_said() -> None:
    result = run(FakeService([]))
    assert result.exit_code == Exit.REFUSED
    assert "vireo: no model for classify is served at http://127.0.0.1:" in result.stderr


def test_missing_key_is_said() -> None:
    result = run(FakeService(), authenticator=Authenticator({"ada": ("0" * 64,)}, False))
    assert result.exit_code == Exit.REFUSED
    assert "vireo: invalid_api_key: " in result.stderr


def test_exit_code_tells_some_from_none() -> None:
    good = {"index": 0, "label": "7"}
    bad = {"index": 1, "error": {"code": "invalid_image", "message": "broken", "type": "invalid_request_error"}}
    lost = {"index": 1, "error": {"code": "engine_failed", "message": "lost", "type": "server_error"}}
    assert exit_code_of([good, good]) == Exit.OK
    assert exit_code_of([good, bad]) == exit_code_of([lost, good]) == Exit.PARTLY
    assert exit_code_of([bad, bad]) == Exit.REFUSED
    assert exit_code_of([lost]) == exit_code_of([{"error": {}}]) == Exit.FAILED
