"""A system's life as an operator sees it: up, status, down; mistakes; and an end that loses nothing it accepted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from serving.client.exits import Exit
from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, opened
from tests.support.clients import Ask
from tests.support.system import (
    MODEL,
    ROOT,
    System,
    cli_environment,
    free_service_ports,
    name_of,
    processes_of,
    run_cli,
    running_system,
    short_folder,
)
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def test_up_in_the_background_status_and_down(folder: Path, digits: list[Picture]) -> None:
    environment = cli_environment(folder, mark := os.urandom(8).hex())
    port, grpc_port = free_service_ports(2)
    here = ("--port", str(port))
    mine = ("--set", f"run_dir={folder / 'mine'}")  # which status and down are not told
    try:
        start = ("up", "--detach", *here, *mine, "--grpc-port", str(grpc_port))
        up = run_cli(*start, environment=environment, timeout_s=240)
        assert up.returncode == 0, up.stdout + up.stderr
        assert "Vireo is up" in up.stdout
        assert "inference.GRPCInferenceService/ModelInfer" in up.stdout, "one request of each kind was answered"

        again = run_cli("up", *here, *mine, environment=environment)
        assert again.returncode == Exit.USAGE
        assert "already running" in again.stderr
        assert "vireo down" in again.stderr

        status = run_cli("status", *here, "--json", environment=environment)
        assert status.returncode == 0
        assert json.loads(status.stdout)["ready"]

        path = folder / "digit.png"
        path.write_bytes(digits[3][0])
        url = f"http://127.0.0.1:{port}"
        assert "3" in run_cli("classify", str(path), "--url", url, environment=environment).stdout

        down = run_cli("down", *here, environment=environment, timeout_s=100)
        assert (down.returncode, down.stdout.strip()) == (0, "stopped")
        wait_until(lambda: not processes_of(mark, -1), "no process is left")
        gone = run_cli("status", *here, "--json", environment=environment)
        assert (gone.returncode, json.loads(gone.stdout)) == (Exit.UNREACHABLE, {"running": False})
    finally:
        for process in processes_of(mark, -1):
            process.kill()


def test_start_that_is_broken_off_leaves_nothing(folder: Path) -> None:
    environment = cli_environment(folder, mark := os.urandom(8).hex())
    port, grpc_port = map(str, free_service_ports(2))
    command = [sys.executable, "-m", "serving.cli", "up", "--port", port, "--grpc-port", grpc_port]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as up:
        names = lambda: {name_of(process) for process in processes_of(mark, -1)}  # noqa: E731
        wait_until(lambda: "raylet" in names(), "Ray is starting", 60)
        up.send_signal(signal.SIGINT)
        _, err = up.communicate(timeout=60)
    assert (up.returncode, err.splitlines()[-1]) == (Exit.INTERRUPTED, "vireo: stopped before it was up")
    assert "Traceback" not in err
    wait_until(lambda: not processes_of(mark, -1), "no process is left")


_LATE = """
import importlib
import sys
from serving.cli import up
from serving.cli.main import main

module, name, *sys.argv[1:] = sys.argv[1:]
prepare = up.ray_env.prepare

def prepared(config):
    keeper = prepare(config)  # before ray is imported
    owner = importlib.import_module(module)
    start = getattr(owner, name)

    def late(*args, **kwargs):
        start(*args, **kwargs)
        raise TimeoutError("the current node timed out during startup.")

    setattr(owner, name, late)
    return keeper

up.ray_env.prepare = prepared
sys.exit(main())
"""


@pytest.mark.parametrize(("module", "name"), [("ray", "init"), ("ray.serve", "start")])
def test_start_for_which_ray_takes_too_long_says_so_and_leaves_nothing(module: str, name: str, folder: Path) -> None:
    environment = cli_environment(folder, mark := os.urandom(8).hex())
    port, grpc_port = map(str, free_service_ports(2))
    command = [sys.executable, "-c", _LATE, module, name, "up", "--port", port, "--grpc-port", grpc_port]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == Exit.FAILED, run.stderr
    said = run.stderr.splitlines()[-1]
    assert said.startswith("vireo: Ray did not start (the current node timed out during startup). The machine may be")
    assert "Traceback" not in run.stdout + run.stderr
    wait_until(lambda: not processes_of(mark, -1), "no process is left")


def test_down_with_nothing_running_says_so(folder: Path) -> None:
    run = run_cli("down", "--port", "24999", environment=cli_environment(folder, "none"))
    assert (run.returncode, run.stdout.strip()) == (0, "nothing is running")


def test_taken_port_is_refused_by_number(folder: Path) -> None:
    (other,) = free_service_ports(1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = str(listener.getsockname()[1])
        for ports in (("--port", taken, "--grpc-port", str(other)), ("--port", str(other), "--grpc-port", taken)):
            run = run_cli("up", *ports, environment=cli_environment(folder, "none"))
            assert run.returncode == Exit.USAGE
            assert f"port {taken} is taken" in run.stderr
            assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("gateway.replicsa=2", "replicsa"),
        ("gateway.replicas=none", "replicas"),
        ("gateway.replicas", "="),
        ("models=[{id: dyn-perceiver-nano, device: tpu}]", "device"),
        ("models=[{id: no-such-model}]", "no-such-model"),
    ],
)
def test_wrong_setting_is_refused_by_name(setting: str, word: str, folder: Path) -> None:
    port, grpc_port = map(str, free_service_ports(2))
    ports = ("--port", port, "--grpc-port", grpc_port)
    run = run_cli("up", *ports, "--set", setting, environment=cli_environment(folder, "none"), timeout_s=100)
    assert run.returncode == Exit.USAGE
    assert word in run.stderr
    assert "Traceback" not in run.stderr


def test_long_run_folder_is_refused(folder: Path) -> None:
    environment = cli_environment(folder, "none") | {"VIREO_RUN_DIR": str(folder / ("x" * 40))}
    run = run_cli("up", environment=environment)
    assert run.returncode == Exit.USAGE
    assert "limit is" in run.stderr


def test_two_systems_on_one_machine_do_not_meet(system: System, strict: System) -> None:
    def ports(of: System) -> set[int]:
        pids = {process.pid for process in of.processes()}
        found = psutil.net_connections("tcp")
        return {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN and c.pid in pids}

    assert ports(system)
    assert ports(strict)
    assert ports(system).isdisjoint(ports(strict))


def test_system_whose_starter_is_killed_serves_no_more_and_down_clears_up(new_picture: Callable[[], Picture]) -> None:
    with running_system() as system:
        with opened(system) as door:
            assert SURFACES["http_json"](door, Ask([new_picture()[0]], model=MODEL)).error is None
        system.process.kill()
        system.process.wait()
        agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent", ""}
        wait_until(lambda: {name_of(p) for p in system.processes()} <= agents, "all but two agents of Ray end", 60)
        down = system.command("down", "--port", str(system.port))
        assert down.returncode == 0
        assert "nothing is running" in down.stdout
        assert system.processes() == []
