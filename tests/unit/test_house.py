"""Rules of the house that no linter keeps: who imports whom, what is loaded where, what is written where."""

from __future__ import annotations

import ast
import configparser
import graphlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from models.registry import families
from tests.support.source_tree import ROOT, import_graph, imported, module_name, modules, tracked_files

# -- who imports whom ------------------------------------------------------------------------------------------------

_STDLIB = sys.stdlib_module_names
_OURS = {"serving", "models", "schedulers", "loadtest", "vireo_pb", "tests"}
_PURE = {
    "asyncio",
    "time",
    "datetime",
    "socket",
    "threading",
    "multiprocessing",
    "concurrent",
    "subprocess",
    "os",
    "io",
}
_ATTACKERS = "loadtest.adversarial"


@pytest.mark.parametrize("path", modules("schedulers"), ids=module_name)
def test_schedulers_use_the_standard_library_without_clock_loop_or_io(path: Path) -> None:
    allowed = (_STDLIB - _PURE) | {"schedulers"}
    assert {name.split(".")[0] for name in imported(path)} <= allowed


@pytest.mark.parametrize("path", modules("models"), ids=module_name)
def test_models_use_tensors_and_pictures_and_nothing_that_serves(path: Path) -> None:
    allowed = (_STDLIB - {"asyncio", "socket"}) | {
        "models",
        "msgspec",  # reads tables strictly
        "torch",
        "numpy",
        "safetensors",
        "PIL",
        "sklearn",
        "matplotlib",
        "transformers",
        "tokenizers",
        "jinja2",  # chat templates
        "diffusers",
        "timm",
        "triton",  # of GPU kernels, imported when one is asked for
    }
    if path.match("models/families/*/vllm_*.py"):
        allowed |= {"vllm"}  # a family's plug-in, which vLLM itself imports
    assert {name.split(".")[0] for name in imported(path)} <= allowed


@pytest.mark.parametrize("path", modules("loadtest"), ids=module_name)
def test_loadtest_sees_the_server_from_outside(path: Path) -> None:
    unwanted = {"serving", "schedulers", "ray"}
    names = set(imported(path))
    if module_name(path).startswith(_ATTACKERS):  # those have the weights, and some know the guard
        names = {name for name in names if not name.startswith(("schedulers.guard", "serving.guard"))}
    else:
        unwanted |= {"models", "torch"}
        assert not [name for name in names if name.startswith(_ATTACKERS)]
    assert not {name.split(".")[0] for name in names} & unwanted


@pytest.mark.parametrize("path", modules("serving"), ids=module_name)
def test_serving_imports_what_it_joins_and_no_traffic_or_tests(path: Path) -> None:
    allowed = {"serving", "models", "schedulers", "vireo_pb"}
    if module_name(path).startswith("serving.cli"):
        allowed.add("loadtest")  # `vireo loadtest` is one of its commands
    assert {name.split(".")[0] for name in imported(path)} & _OURS <= allowed


def test_import_linter_knows_every_package() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    assert set(contracts["importlinter"]["root_packages"].split()) == _OURS - {"tests"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither at the top nor inside functions; what types alone need does not count."""
    graph = import_graph("serving", "models", "schedulers", "loadtest")
    assert len(graph) > 300
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_no_folders_of_serving_import_each_other() -> None:
    graph = import_graph("serving")
    pairs = {(name.split(".")[1], other.split(".")[1]) for name in graph for other in graph[name] if "." in other}
    assert not {(one, other) for one, other in pairs if one < other and (other, one) in pairs}


@pytest.mark.parametrize("package", ["serving", "models", "schedulers", "loadtest"])
def test_environment_is_read_in_few_places(package: str) -> None:
    """Settings come from ``serving/config``; the others pass on, or hear from, tools that only speak environment."""
    allowed = {
        "serving.config.load",
        "serving.config.resolved",
        "serving.telemetry.exposition",  # prometheus-client's folder
        "serving.telemetry.tracing",  # OpenTelemetry's switches
        "serving.confined",  # a child's environment
        "serving.energy.nvml",  # the GPUs that Ray has given to the process
        "serving.system.ray_env",  # Ray's switches; that of other processes, to know whose they are
        "serving.cli.loadtest_run",  # API keys of the tenants that it plays
        "loadtest.selfcheck",  # a child's environment
    }
    readers = {module_name(path) for path in modules(package) if _reads_environment(ast.parse(path.read_text()))}
    assert readers <= allowed


def _reads_environment(tree: ast.AST) -> bool:
    """``os.environ`` other than as the target of an assignment or of ``update``; ``os.getenv``."""
    written = {
        id(node.value)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del))
        or (isinstance(node, ast.Attribute) and node.attr in ("update", "setdefault"))
    }
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and id(node) not in written
        for node in ast.walk(tree)
    )


# -- what is loaded where --------------------------------------------------------------------------------------------

_HEAVY = {"torch", "timm", "ray", "transformers", "vllm", "sklearn", "matplotlib", "redis", "fastapi"}
_LOADS = {
    "decode worker": (["serving.media.worker", "serving.media.processors"], _HEAVY),
    "processor": (
        ["models.registry", "models.identity", "models.families.dyn_perceiver.family", "models.pictures"],
        _HEAVY,
    ),
    "front door's types": (
        ["serving.domain", "serving.errors", "serving.delivery.unary.wire", "serving.config"],
        _HEAVY,
    ),
    "gateway": (
        ["serving.gateway.parts", "serving.delivery.unary.service", "serving.gateway.http"],
        {"torch", "sklearn", "vllm"},
    ),
    "chat options": (["serving.replica.chat.setup"], _HEAVY),
    "application": (["serving.app"], {"torch", "sklearn", "vllm"}),
    "load test": (["loadtest.execute", "loadtest.report"], {"torch", "ray", "serving", "models", "schedulers"}),
}


@pytest.mark.parametrize("who", _LOADS)
def test_process_does_not_pay_for_what_it_does_not_use(who: str) -> None:
    names, unwanted = _LOADS[who]
    assert not _loaded_by(names) & unwanted


def test_help_and_completion_wait_for_nothing_that_commands_need() -> None:
    slow = {"numpy", "PIL", "pydantic", "httpx", "grpc", "yaml", "rich", "psutil", "asyncio", "loadtest", "msgspec"}
    assert not _loaded_by(["serving.cli.app"], "serving.cli.app.build()") & (_HEAVY | slow)
    assert _loaded_by(["serving.cli.main"]) - _loaded_by(["os", "signal"]) == {"serving"}


def test_all_of_schedulers_loads_the_standard_library_alone() -> None:
    names = [module_name(path) for path in modules("schedulers")]
    assert len(names) > 5
    allowed = _STDLIB | {"schedulers"} | _loaded_by(["os"])
    assert not _loaded_by(names) - allowed


def _loaded_by(names: list[str], then: str = "pass") -> set[str]:
    """Top-level modules in a fresh interpreter after importing ``names``."""
    code = f"import sys, {', '.join(names)}; {then}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["serving", "models", "schedulers", "loadtest"])
def test_importing_a_module_starts_and_prints_nothing(package: str) -> None:
    names = [module_name(path) for path in modules(package) if path.stem != "__main__"]
    code = (
        f"import threading, {', '.join(names)}\n"
        "mine = [t.name for t in threading.enumerate() if t is not threading.main_thread()]\n"
        "assert not mine, mine"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# -- names that are written as strings -------------------------------------------------------------------------------


def _strings_in_deploy() -> set[str]:
    """``module:attribute`` and dotted servicer functions in all YAML of deploy/, also in YAML inside strings."""
    found: set[str] = set()

    def walk(value: object, key: str = "") -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, str(name))
        elif isinstance(value, list):
            for inner in value:
                walk(inner, key)
        elif isinstance(value, str):
            if key == "import_path":
                found.add(value)
            elif key == "grpc_servicer_functions":
                found.add(":".join(value.rsplit(".", 1)))
            elif "\n" in value and "import_path" in value:
                walk(yaml.safe_load(value))

    for path in sorted((ROOT / "deploy").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            walk(document)
    return found


def test_deploy_names_the_application_and_servicers_that_exist() -> None:
    named = _strings_in_deploy()
    assert "serving.app:build_app" in named
    assert len(named) >= 4
    for name in named:
        module, attribute = name.split(":")
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_application_and_deployed_config_open_the_same_grpc_services() -> None:
    from serving.app import GRPC_SERVICERS

    assert {":".join(name.rsplit(".", 1)) for name in GRPC_SERVICERS} <= _strings_in_deploy()


def test_console_command_exists() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for target in scripts.values():
        module, attribute = target.split(":")
        assert callable(getattr(importlib.import_module(module), attribute))


# -- what no file may hold -------------------------------------------------------------------------------------------

_HOME = "|".join(("work", "root", "home", "Users", "mnt", "media"))
_MACHINE_PATH = re.compile(rf"(?<![\w.<>/~:*-])/(?:{_HOME})/[\w.]+/?")
_CONTAINER_PATHS = ("/home/ray/", "/home/vireo/", "/home/user/")
_HIDDEN_URL = re.compile(r"(?:index-url|find-links|trusted-host)[= ]+[\"']?(?:https?|file):?/+\S+")


def _texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if path != Path(__file__) and b"\0" not in data:
            found.append((path, data.decode("utf-8", "replace")))
    return found


def test_no_file_holds_a_path_of_one_machine() -> None:
    texts = _texts()
    if not texts:
        pytest.skip("not a git clone")
    hits = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path, text in texts
        for match in _MACHINE_PATH.finditer(text)
        if not match.group().startswith(_CONTAINER_PATHS)
    ]
    hits += [str(path.relative_to(ROOT)) for path, text in texts if f"{ROOT}/" in text]
    assert not hits


def test_no_file_holds_a_package_index() -> None:
    """Neither in general nor those that this very machine installs from."""
    texts = _texts()
    if not texts:
        pytest.skip("not a git clone")
    private = _package_indices()
    for path, text in texts:
        match = _HIDDEN_URL.search(text)
        assert match is None, f"{path}: {match.group()}"
        for index in private:
            assert index not in text, f"{path} names {index}"


def _package_indices() -> set[str]:
    """Hosts and folders that pip and uv use here, the public one excepted."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings = listing.stdout + "\n".join(value for name, value in os.environ.items() if "INDEX" in name)
    hosts = set(re.findall(r"https?://(?:[^/@\s']*@)?([^/\s':]+)", settings))
    folders = set(re.findall(r"(?:file://)?(/[\w.-]+/[\w./-]+)", settings))
    return {name for name in hosts | folders if "pypi.org" not in name and not name.startswith(("/etc/", "/usr/"))}


def test_serving_writes_the_name_of_no_family() -> None:
    """Texts and messages are made of the registry, so that a family more or less changes nothing there."""
    others = set(families()) - {"vllm"}  # a library, and the engine that is called after it
    names = re.compile(rf"\b({'|'.join(map(re.escape, others))})\b")
    hits = [
        f"{module_name(path)}: {node.value[:60]!r}"
        for path in modules("serving")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and names.search(node.value)
    ]
    assert not hits


# -- tests that can fail ---------------------------------------------------------------------------------------------

_TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
_PYTHON_TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if not {"benchmarks", "fuzz"} & {*path.parts}]
_CHECKS = {"raises", "warns", "fail", "deprecated_call"}
"""Of pytest, and methods of NumPy, torch and mocks that begin with ``assert_``."""


@pytest.mark.parametrize("path", _TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_can_fail_by_an_assertion(path: Path) -> None:
    """Its own, or that of a function of the tests that it calls; that nothing is raised is no check."""
    asserting = _asserting(path)
    assert any(name.startswith("test_") for name in asserting)
    idle = [name for name in _functions(path) if name.startswith("test_") and name not in asserting]
    assert not idle


@cache
def _functions(path: Path) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Of a file, by name; those inside functions and classes, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@cache
def _asserting(path: Path) -> set[str]:
    """Names of a file's functions that assert, or call one that does, of this file or of another one of the tests."""
    known = set(_imported_functions(path))
    while new := {name for name, node in _functions(path).items() if name not in known and _asserts(node, known)}:
        known |= new
    return known


def _imported_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if module == "models.testing":
            yield "check"  # what ``checks_of`` gives is called so
        elif module.startswith("tests."):
            source = (ROOT / module.replace(".", "/")).with_suffix(".py")
            names = _asserting(source) if source.is_file() else set()
            yield from (alias.asname or alias.name for alias in node.names if alias.name in names)


def _asserts(function: ast.AST, helpers: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            if last in helpers or last.startswith("assert_") or (name.startswith("pytest.") and last in _CHECKS):
                return True
    return False


_MAY_SLEEP = {
    "tests/support/waiting.py": "the one place where tests wait",
    "tests/support/chat_replicas.py": "frames take as long on a virtual loop",
    "tests/support/media_processors.py": "a decode that takes a while, in a process of its own",
    "tests/support/fake_engine.py": "a stage that takes a while",
}


def test_no_test_waits_for_a_time_that_somebody_guessed() -> None:
    """What can be waited for is waited for: by an event, by ``tests.support.waiting``, or on a virtual loop."""
    sleeping = set()
    for path in _PYTHON_TESTS:
        text = path.read_text(encoding="utf-8")
        if "sleep" in text and "run_virtual" not in text:
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            sleeping |= {str(path.relative_to(ROOT)) for call in calls if _sleeps(call)}
    assert sleeping == set(_MAY_SLEEP)


def _sleeps(call: ast.Call) -> bool:
    is_a_turn = bool(call.args) and isinstance(call.args[0], ast.Constant) and call.args[0].value == 0
    return ast.unparse(call.func) in ("time.sleep", "asyncio.sleep", "sleep") and not is_a_turn


def test_no_test_module_is_left_out_by_its_name() -> None:
    """pytest collects ``test_*.py`` only: a test function in a file of another name would never run."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if not path.name.startswith("test_"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert not [name for name in names if name.startswith("test_")], path


_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_links_between_pages_lead_somewhere() -> None:
    pages = [path for path in tracked_files() if path.suffix == ".md"]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in _LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken
