"""The Containerfile, read instruction by instruction: no container engine runs where the tests do."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.deploy.conftest import REPOSITORY, load_script

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


def test_base_images_are_arguments_without_a_default(stages: dict[str, Stage]) -> None:
    arguments, _ = parse(CONTAINERFILE.read_text(encoding="utf-8"))
    defaults = dict(argument.split("=", 1) for argument in arguments)
    assert defaults == {"BASE_IMAGE": "scratch", "GPU_BASE_IMAGE": "scratch"}, "none is fetched unless it is named"
    assert {stage.base for stage in stages.values()} == {"${BASE_IMAGE}", "${GPU_BASE_IMAGE}"}


@pytest.mark.parametrize(("stage", "name"), [("cpu-build", "BASE_IMAGE"), ("gpu-build", "GPU_BASE_IMAGE")])
@pytest.mark.parametrize(
    ("image", "is_taken"),
    [
        (f"python@sha256:{'a' * 64}", True),
        (f"host.test:5000/a/python:3.11@sha256:{'a' * 64}", True),
        ("python:3.11-slim", False),
        ("scratch", False),
        ("", False),
    ],
)
def test_a_base_image_must_be_named_by_digest(
    stages: dict[str, Stage], stage: str, name: str, image: str, is_taken: bool
) -> None:
    assert name in stages[stage].all("ARG")
    run = subprocess.run(["sh", "-c", stages[stage].all("RUN")[0]], env={name: image}, capture_output=True, text=True)
    assert (run.returncode == 0) == is_taken
    assert is_taken or f"{name} must name a digest" in run.stderr


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
        "--no-deps --require-hashes --only-binary :all: -r requirements/cpu.lock",
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


def test_the_gpu_image_installs_its_own_lock_and_resolves_nothing(stages: dict[str, Stage]) -> None:
    installs = [run for run in stages["gpu-build"].all("RUN") if "pip install" in run]
    assert installs == [
        "pip install --no-deps --require-hashes --only-binary :all: -r requirements/gpu.lock",
        "pip install --no-deps .",
    ]


@pytest.mark.parametrize("target", TARGETS)
def test_no_compiler_is_in_an_image_that_runs(stages: dict[str, Stage], target: str) -> None:
    packages = set(re.findall(r"[\w.+-]+", " ".join(stages[target].all("RUN"))))
    assert not packages & {"gcc", "g++", "clang", "build-essential", "libc6-dev", "python3-dev", "cuda-nvcc"}
    assert "openssl" in packages, "the operator's check of Ray's certificates"


def test_triton_gets_the_one_file_that_it_compiles_and_nothing_else(stages: dict[str, Stage], tmp_path: Path) -> None:
    assert "CC=/opt/vireo/bin/triton-cc" in " ".join(stages["gpu"].all("ENV"))
    assert "python deploy/images/triton_cc.py /opt/vireo" in stages["gpu-build"].all("RUN")
    source = tmp_path / "driver.c"
    source.write_text("int cuInit(unsigned);\nint answer(void) { return 42 + 0 * (cuInit != 0); }\n", encoding="utf-8")
    load_script("images/triton_cc").prepare(source, tmp_path, tmp_path / "image")
    # As Triton 3.8 calls it, from a copy of its own, where nothing else that compiles can be found.
    made, copied = tmp_path / "out.so", tmp_path / "copy" / "cuda_utils.c"
    copied.parent.mkdir()
    copied.write_bytes(source.read_bytes())
    stand_in, options = str(tmp_path / "image" / "bin" / "triton-cc"), ["-O3", "-shared", "-fPIC", "-o", str(made)]
    subprocess.run([stand_in, copied, *options, "-l:libcuda.so.1", "-L/usr/lib"], check=True)
    assert b"libcuda.so.1" in made.read_bytes()
    copied.write_text("int other(void) { return 1; }", encoding="utf-8")
    made.unlink()
    refused = subprocess.run([stand_in, copied, *options], capture_output=True, text=True)
    assert (refused.returncode, made.exists()) == (1, False)
    assert "no compiler is in this image" in refused.stderr


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
