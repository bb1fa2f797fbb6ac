"""An option for each setting of the model that is asked, as a user types it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from models.contract import Knob, LazyRef, Value
from serving.cli.app import build
from serving.client.exits import Exit
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService, make_card, make_chat_card
from tests.support.served_door import ServedDoor, served

DIGIT = str(Path(__file__).parents[4] / "examples" / "digit-7.png")
KNOBS = (
    Knob(name="exit_2", default=1.0, low=0, high=1, summary="Confidence.", trades="accuracy for time"),
    Knob(name="tiles", default=4, values=(1, 4), summary="Tiles of an image."),
    Knob(name="is_sharp", default=False, values=(False, True), summary="Whether it is sharp."),
    Knob(name="attention", default="dense", parse=LazyRef("builtins:str"), grid=("dense", "tile:2"), summary="Kind."),
    Knob(name="dtype", default="float32", values=("float32",), summary="Numbers.", scope="deployment"),
)


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    return build()


@pytest.fixture
def door() -> Iterator[ServedDoor]:
    cards = (replace(make_card(), knobs=KNOBS),)
    with served(FakeService(cards, chat_cards=(replace(make_chat_card(), knobs=KNOBS),))) as door:
        yield door


def vireo(app: typer.Typer, door: ServedDoor, *words: str) -> Result:
    result = CliRunner().invoke(app, [*words, "--url", door.url], env={"NO_COLOR": "1", "COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--exit-2", "0.6"], {"exit_2": 0.6}),
        (["--exit-2=1", "--tiles", "4"], {"exit_2": 1.0, "tiles": 4}),
        (["--set", "exit_2=0.5", "--set=tiles=1"], {"exit_2": 0.5, "tiles": 1}),
        (["--is-sharp", "true", "--attention", "2"], {"is_sharp": True, "attention": "2"}),
        (["--model", MODEL, "--exit_2", "0"], {"exit_2": 0.0}),
        ([], {}),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_setting_reaches_the_server_with_the_type_that_it_has(
    app: typer.Typer, door: ServedDoor, words: list[str], settings: dict[str, Value], is_first: bool
) -> None:
    result = vireo(app, door, "classify", *((*words, DIGIT) if is_first else (DIGIT, *words)))
    assert result.exit_code == 0, result.output
    (request,) = door.service.requests
    assert request.budget.settings == settings
    assert {name: type(value) for name, value in request.budget.settings.items()} == {
        name: type(value) for name, value in settings.items()
    }


@pytest.mark.parametrize("words", [["chat", "hello"], ["read", DIGIT]])
def test_other_commands_take_them_too(app: typer.Typer, door: ServedDoor, words: list[str]) -> None:
    assert vireo(app, door, *words, "--tiles", "1", "--model", CHAT_MODEL).exit_code == 0
    assert door.service.chats[0].budget.settings == {"tiles": 1}


def test_values_are_refused_in_the_words_of_the_knob(app: typer.Typer, door: ServedDoor) -> None:
    for word, value in (("7", 7), ("much", "much"), ("-1", -1)):
        with pytest.raises(ValueError, match=r"exit_2 is .*; give a number from 0 to 1") as refusal:
            KNOBS[0].check(value)
        result = vireo(app, door, "classify", DIGIT, "--exit-2", word)
        assert (result.exit_code, result.stderr) == (Exit.REFUSED, f"vireo: invalid_request: {refusal.value}\n")


@pytest.mark.parametrize("option", ["--latency=5", "--dtype=float32"])
def test_what_neither_command_nor_model_has_is_refused_before_anything_is_asked(
    app: typer.Typer, door: ServedDoor, option: str
) -> None:
    result = vireo(app, door, "classify", DIGIT, option)
    name = option.partition("=")[0]
    assert result.exit_code == 2
    assert f"there is no option {name}, and {MODEL} has no such setting; it has: --exit-2, --tiles" in result.stderr
    assert not door.service.requests


def test_slip_of_the_pen_is_told_what_it_may_have_meant(app: typer.Typer, door: ServedDoor) -> None:
    for wrong, meant in (("--latncy-ms", "--latency-ms"), ("--tils", "--tiles")):
        result = vireo(app, door, "classify", DIGIT, wrong, "4")
        assert (result.exit_code, f"did you mean {meant}?" in result.stderr) == (Exit.USAGE, True)


def test_option_without_a_value_and_set_without_a_name_are_refused(app: typer.Typer, door: ServedDoor) -> None:
    for words, says in ((["--exit-2"], "No such option: --exit-2"), (["--set", "exit_2"], "write NAME=VALUE")):
        result = vireo(app, door, "classify", DIGIT, *words)
        assert (result.exit_code, says in result.stderr) == (2, True)


def test_words_after_a_double_dash_are_no_options(app: typer.Typer, door: ServedDoor) -> None:
    result = CliRunner().invoke(app, ["chat", "--url", door.url, "--", "--tiles 1"])
    assert result.exit_code == 0, result.output
    assert not door.service.chats[0].budget.settings


def test_help_with_a_model_lists_its_settings(app: typer.Typer, door: ServedDoor) -> None:
    result = vireo(app, door, "classify", "--help", "--model", MODEL)
    said = " ".join(result.stdout.split())
    assert f"Settings of {MODEL}: --exit-2 <0 to 1> Confidence. Trades accuracy for time. [default: 1.0]" in said
    assert "--tiles <1 | 4> Tiles of an image. [default: 4]" in said
    assert "--attention <text such as dense | tile:2> Kind. [default: dense]" in said
    assert "dtype" not in result.stdout


def test_help_says_where_settings_are_not_known(app: typer.Typer, door: ServedDoor) -> None:
    assert "Settings of" not in vireo(app, door, "classify", "--help").stdout
    result = vireo(app, door, "classify", "--help", "--model", "nobody")
    assert (result.exit_code, "Settings of nobody:\n  not known: model_not_found" in result.stdout) == (0, True)
