"""The Containerfile, read instruction by instruction: no container engine runs where the tests do."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from dataclasses import dataclass, field

import pytest

from tests.deploy.conftest import REPOSITORY

CONTAINERFILE = REPOSITORY / "deploy" / "images" / "Containerfile"
TARGETS = ("cpu", "gpu")


@dataclass
class Stage:
    """One FROM and the instructions below it, as (instruction, arguments)."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.instructions if name == instruction]


def parse(text: str) -> tuple[list[str], dict[str, Stage]]:
    """Return the global build arguments and the stages by name."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    logical = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    arguments: list[str] = []
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in filter(str.strip, logical):
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages[name] = Stage(base, name)
        elif current is None:
            arguments.append(rest)
        else:
            current.instructions.append((instruction, rest.strip()))
    return arguments, stages


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return parse(CONTAINERFILE.read_text(encoding="utf-8"))[1]


def test_only_known_instructions_are_used(stages: dict[str, Stage]) -> None:
    known = {"ARG", "CMD", "COPY", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "RUN", "USER", "WORKDIR"}
    assert {name for stage in stages.values() for name, _ in stage.instructions} <= known


def test_both_targets_and_their_build_stages_exist_and_cpu_is_the_default(stages: dict[str, Stage]) -> None:
    assert list(stages) == ["cpu-build", "gpu-build", "gpu", "cpu"]


def test_base_images_are_arguments_without_a_registry_host(stages: dict[str, Stage]) -> None:
    arguments, _ = parse(CONTAINERFILE.read_text(encoding="utf-8"))
    defaults = dict(argument.split("=", 1) for argument in arguments)
    assert set(defaults) == {"BASE_IMAGE", "GPU_BASE_IMAGE"}
    assert {stage.base for stage in stages.values()} == {"${BASE_IMAGE}", "${GPU_BASE_IMAGE}"}
    for image in defaults.values():
        first, _, rest = image.partition("/")
        assert not (rest and ("." in first or ":" in first)), f"{image} names a registry host"
        assert ":" in image
        assert not image.endswith(":latest")


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_numeric_user_that_is_not_root(stages: dict[str, Stage], target: str) -> None:
    assert stages[target].all("USER")[-1] == "10001:10001"
    after = [name for name, _ in stages[target].instructions][
        [n for n, _ in stages[target].instructions].index("USER") :
    ]
    assert "RUN" not in after
    assert "COPY" not in after


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_a_health_check_ports_labels_and_a_command(stages: dict[str, Stage], target: str) -> None:
    stage = stages[target]
    (health,) = stage.all("HEALTHCHECK")
    command = json.loads(health.partition("CMD ")[2])
    compile(command[2], "healthcheck", "exec")
    assert "/healthz" in command[2]
    assert stage.all("EXPOSE") == ["8000 9000"]
    assert stage.all("CMD") == ['["vireo", "up"]']
    assert "org.opencontainers.image.version" in stage.all("LABEL")[0]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_gets_the_environment_built_in_its_own_build_stage_and_no_sources(
    stages: dict[str, Stage], target: str
) -> None:
    assert stages[target].all("COPY") == [f"--from={target}-build /opt/vireo /opt/vireo"]


def test_the_cpu_image_installs_torch_then_the_lock_then_the_project(stages: dict[str, Stage]) -> None:
    runs = " && ".join(stages["cpu-build"].all("RUN"))
    installs = [match.strip() for match in re.findall(r"pip install ([^&]+)", runs)]
    assert [i.split(" ${")[0] for i in installs] == [
        "\"$(grep '^torch==' requirements/cpu.in)\"",
        "--no-deps -r requirements/cpu.lock",
        "--no-deps .",
    ]
    pins = [
        line for line in (REPOSITORY / "requirements" / "cpu.in").read_text().splitlines() if line.startswith("torch==")
    ]
    assert len(pins) == 1
    lock = (REPOSITORY / "requirements" / "cpu.lock").read_text()
    assert not re.search(r"^torch==", lock, re.MULTILINE)


def test_the_cpu_image_has_what_the_kernels_of_torch_and_vllm_load(stages: dict[str, Stage]) -> None:
    installed = " ".join(stages["cpu"].all("RUN")).split()
    assert {"libgomp1", "libnuma1"} <= set(installed)


def test_the_gpu_image_installs_the_gpu_extra(stages: dict[str, Stage]) -> None:
    assert 'pip install ".[gpu]"' in " ".join(stages["gpu-build"].all("RUN"))
    assert re.search(r"^gpu = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("stage", ["cpu-build", "gpu-build"])
def test_everything_that_is_copied_exists_and_is_in_the_build_context(stages: dict[str, Stage], stage: str) -> None:
    sources = [source for copy in stages[stage].all("COPY") for source in shlex.split(copy)[:-1]]
    assert {"proto", "schedulers", "models", "loadtest", "serving", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert in_context(source), f"{source} is left out by .dockerignore"
        assert (REPOSITORY / source).exists(), f"{source} does not exist"


def test_caches_and_secrets_stay_out_of_the_build_context() -> None:
    for path in (".git/config", ".venv/bin/python", "deploy/overlays/dev/secrets/redis-password", ".vireo/x"):
        assert not in_context(path)
    assert not in_context("serving/__pycache__/app.cpython-311.pyc")


def in_context(path: str) -> bool:
    """Return whether .dockerignore lets a path into the context: the last rule that matches it or a parent decides."""
    parts = path.split("/")
    candidates = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    kept = True
    for rule in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split("\n"):
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        if any(_matches(candidate, pattern) for candidate in candidates):
            kept = rule.startswith("!")
    return kept


def _matches(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern.removeprefix("**/"))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern)
