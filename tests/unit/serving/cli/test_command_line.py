"""What holds for every command of ``vireo``: how it explains itself, how it ends, and that Ctrl-C is heard."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

from serving.cli.app import build
from serving.client.exits import SUMMARY, Exit
from serving.front.auth import Authenticator
from tests.support.fake_service import FakeService, make_card
from tests.support.ports import free_port
from tests.support.served_door import served
from tests.support.source_tree import ROOT
from tests.unit.serving.cli.test_documented_commands import check, words_of

DIGIT = str(ROOT / "examples" / "digit-7.png")


@cache
def root() -> Any:
    return typer.main.get_command(build())


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words, groups included."""
    waiting = [("", root())]
    while waiting:
        name, command = waiting.pop()
        if name:
            yield name, command
        waiting += [(f"{name} {sub}".strip(), child) for sub, child in getattr(command, "commands", {}).items()]


COMMANDS = dict(sorted(commands()))
ASKING = {
    "classify": [DIGIT],
    "chat": ["hello"],
    "read": [DIGIT],
    "image": ["a lighthouse"],
    "video": ["a ball"],
    "models list": [],
    "moe status": [],
    "status": [],
    "budget": [],
    "loadtest": ["smoke"],
}
"""Commands that ask a server, and what they need besides its address."""


def vireo(*words: str, columns: int = 80, **env: str) -> Result:
    """What a person gets: no exception but the end of the process."""
    result = CliRunner().invoke(build(), list(words), env={"COLUMNS": str(columns), **env}, prog_name="vireo")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def options_of(command: Any) -> set[str]:
    return {name for param in command.params for name in param.opts}


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_plain_and_fits_80_columns(name: str) -> None:
    result = vireo(*name.split(), "--help")
    assert result.exit_code == Exit.OK
    assert len(result.output) > 100
    assert max(map(len, result.output.splitlines())) <= 80
    assert not set("│╭╰─┃…\x1b") & set(result.output)


@pytest.mark.parametrize("name", [name for name in COMMANDS if not getattr(COMMANDS[name], "commands", None)])
def test_examples_of_the_help_are_commands_that_there_are(name: str) -> None:
    if name in ("convert", "loadtest-selfcheck"):  # the families' own; it takes next to nothing
        return
    lines = [line.strip() for line in vireo(*name.split(), "--help").output.splitlines()]
    examples = [line for line in lines if line.startswith("vireo ")]
    assert examples
    for example in examples:
        for words in words_of(example.partition("   ")[0]):
            check(words)


def test_help_lists_every_command_in_one_line_each_and_the_exit_codes() -> None:
    output = vireo("--help").output
    assert " ".join(SUMMARY.split()) in " ".join(output.split())
    for name in root().commands:
        (line,) = [line for line in output.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith(".")
        assert "..." not in line
    assert "Other:" not in output


@pytest.mark.parametrize("command", ["clasify", "modles", "stauts"])
def test_slip_of_the_pen_is_told_what_it_may_have_meant(command: str) -> None:
    result = vireo(command)
    assert result.exit_code == Exit.USAGE
    assert "Did you mean '" in result.stderr


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert vireo("--version").output == f"vireo {project['version']}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_a_shell(shell: str) -> None:
    result = vireo("completion", shell)
    assert (result.exit_code, f"_VIREO_COMPLETE=complete_{shell}" in result.output) == (Exit.OK, True)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vireo cl", "classify"),
        ("vireo models l", "list"),
        ("vireo classify --qual", "--quality-floor"),
        ("vireo chat --model texth", "texthawk2-nano"),
        ("vireo loadtest smo", "smoke"),
    ],
)
def test_shell_completes_commands_options_and_models(line: str, offered: str) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    result = vireo(_VIREO_COMPLETE="complete_bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1", **words)
    assert offered in result.output.split()


# -- options ---------------------------------------------------------------------------------------------------------


def test_every_command_that_takes_a_url_takes_a_key_and_gives_json() -> None:
    asking = {name: options_of(command) for name, command in COMMANDS.items() if "--url" in options_of(command)}
    assert asking.keys() == ASKING.keys()
    for options in asking.values():
        assert {"--key", "--api-key", "--json"} <= options


def test_what_is_the_same_has_the_same_name() -> None:
    names = set[str]().union(*map(options_of, COMMANDS.values()))
    assert not names & {"--output", "--target", "--host-url", "--token", "--silent", "--as-json", "--format"}
    shorts: dict[str, set[str]] = {}
    for name, command in COMMANDS.items():
        for param in command.params:
            for short in (option for option in param.opts if len(option) == 2):
                shorts.setdefault(short, set()).add(next(option for option in param.opts if len(option) > 2))
        assert "-h" not in options_of(command), name
    assert {short: names for short, names in shorts.items() if len(names) > 1} == {"-o": {"--out", "--option"}}


# -- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_option_is_wrong_usage(name: str) -> None:
    words = ASKING.get(name, [])
    result = vireo(*name.split(), *words, "--no-such-option")
    assert result.exit_code == Exit.USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ASKING)
def test_nobody_there_is_one_code_and_one_line(name: str, tmp_path: Path) -> None:
    words = [*name.split(), *ASKING[name], "--url", f"127.0.0.1:{free_port()}"]
    if name == "loadtest":  # over HTTP alone: gRPC is given ten seconds
        words[1] = str(tmp_path / "http.yaml")
        phases = "[{name: a, arrival: {kind: uniform, rate_per_s: 1}, duration_s: 1}]"
        text = f"{{name: http, mix: [{{surface: http_classify}}], phases: {phases}, slo: {{deadline_ms: 9}}}}"
        Path(words[1]).write_text(text)
    result = vireo(*words)
    assert result.exit_code == Exit.UNREACHABLE, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("vireo: ")
    assert "vireo up" in last


@pytest.mark.parametrize("name", ASKING)
def test_wrong_url_is_wrong_usage(name: str) -> None:
    result = vireo(*name.split(), *ASKING[name], "--url", "ftp://host")
    assert (result.exit_code, "write HOST:PORT" in result.stderr) == (Exit.USAGE, True), result.stderr


@pytest.mark.parametrize("name", [name for name in ASKING if name != "loadtest"])
def test_key_that_is_missing_or_wrong_is_refused_and_never_shown(name: str, tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    path.write_text("open-sesame\n")
    with served(FakeService(), Authenticator({"ada": ("0" * 64,)}, False)) as door:
        for given in ([], ["--key", "open-sesame"], ["--key", f"@{path}"]):
            result = vireo(*name.split(), *ASKING[name], "--url", f"{door.url}/", *given)
            assert result.exit_code == Exit.REFUSED, result.stderr
            assert "--key @FILE" in result.stderr
            assert "sesame" not in result.output


def test_server_is_told_of_by_what_it_says_itself() -> None:
    with served(FakeService([make_card("painter")])) as door:
        listed = vireo("models", "list", "--url", door.url.removeprefix("http://"), "--json")
        status = vireo("status", "--url", door.url)
    assert listed.exit_code == status.exit_code == Exit.OK, listed.stderr + status.stderr
    assert f'"served_at": "{door.url}"' in listed.stdout
    assert "painter" in status.stdout


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("serving.cli.app", ["--help"]),
        ("typer", ["--help"]),
        ("loadtest.scenario", ["loadtest", "smoke"]),
        ("httpx", ["classify", DIGIT]),
        ("serving.tasks.chat.session", ["chat", "hello"]),
        ("serving.config", ["up"]),
        ("serving.cli.up", ["up", "--port", "1"]),
        ("models.registry", ["models", "list"]),
        ("msgspec", ["models", "show", "x"]),
    ],
)
def test_interrupt_at_any_import_is_one_line(module: str, words: list[str], tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from serving.cli.main import main\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "VIREO_RUN_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (Exit.INTERRUPTED, "", "vireo: stopped\n")
