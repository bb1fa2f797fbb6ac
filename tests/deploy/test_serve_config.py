"""The Serve config: one text, inlined everywhere, valid for the Ray that is pinned, and naming things that exist."""

from __future__ import annotations

import importlib
import itertools
import re
import shutil
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from models.registry import find
from serving.config import ResolvedConfig, StreamOptions, load, resolve
from serving.replica.chat.setup import engine_environment
from serving.tasks.chat.models import read_card
from tests.deploy.conftest import REPOSITORY, load_script, mounted_secrets, secret_values
from tests.deploy.render import Manifest


def serve_config(rayservice: Manifest) -> Manifest:
    config = yaml.safe_load(rayservice["spec"]["serveConfigV2"])
    assert isinstance(config, dict)
    return config


def test_the_manifests_hold_the_current_serve_config() -> None:
    assert load_script("inline_serve_config").main(["--check"]) == 0, "run python deploy/inline_serve_config.py"


def test_a_stale_copy_is_found_and_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")
    source = folder / "serve-config.yaml"
    source.write_text(source.read_text(encoding="utf-8").replace("port: 8000", "port: 8001"), encoding="utf-8")
    script = load_script("inline_serve_config")
    assert script.main(["--check"], deploy_dir=folder) == 1
    assert "base/rayservice.yaml is stale" in capsys.readouterr().err
    assert script.main([], deploy_dir=folder) == 0
    assert script.main(["--check"], deploy_dir=folder) == 0
    assert "      port: 8001\n" in (folder / "base" / "rayservice.yaml").read_text(encoding="utf-8")


def test_a_manifest_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0 serveConfigV2 blocks"):
        load_script("inline_serve_config").inlined("spec: {}\n", "a: 1\n")


def test_ray_accepts_the_config(rayservice: Manifest) -> None:
    config = serve_config(rayservice)
    parsed = ServeDeploySchema.model_validate(config)
    assert [application.name for application in parsed.applications] == ["vireo"]
    # These two schemas let unknown keys through, so a typing error has to be looked for.
    assert set(config["http_options"]) <= set(type(parsed.http_options).model_fields)
    assert set(config["grpc_options"]) <= set(type(parsed.grpc_options).model_fields)


def config_of(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ResolvedConfig:
    """Read the settings as a pod would: the mounted file, and the mounted Secret."""
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (config_map,) = [
        m for m in manifests if m["kind"] == "ConfigMap" and m["metadata"]["name"].startswith("vireo-config")
    ]
    path = tmp_path / "vireo.yaml"
    path.write_text(config_map["data"]["vireo.yaml"], encoding="utf-8")
    secrets = tmp_path / "secrets"
    secrets.mkdir(exist_ok=True)
    for name, text in mounted_secrets(service, secret_values(manifests)).items():
        (secrets / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("VIREO_CONFIG", str(path))
    monkeypatch.setenv("VIREO_SECRETS", str(secrets))
    return resolve(load())


def test_the_service_accepts_its_settings(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of(manifests, monkeypatch, tmp_path)
    assert config.settings.profile == "cluster"
    assert config.run_dir == Path("/run/vireo")
    assert re.fullmatch(r"redis://:[0-9a-zA-Z_-]{16,}@vireo-redis:6379/0", config.store_url)
    assert config.allow_anonymous_loopback is False
    assert [len(tenant.api_key_sha256) for tenant in config.settings.tenants] == [1]


def test_the_workers_have_what_the_settings_ask_for(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of(manifests, monkeypatch, tmp_path)
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    num_cpus, num_gpus = (sum(sizes) for sizes in zip(*replicas_of(config), strict=True))
    assert num_cpus <= workers["replicas"] * int(limits["cpu"])
    assert num_gpus <= workers["replicas"] * int(limits.get("nvidia.com/gpu", 0))


def replicas_of(config: ResolvedConfig) -> list[tuple[float, float]]:
    """Return (CPUs, GPUs) of every replica that the settings ask for."""
    gateway = config.settings.gateway
    found = [(m.cpus, m.gpus) for m in config.models for _ in range(m.replicas)]
    return [(gateway.cpus, 0.0)] * gateway.replicas + found


Nodes = tuple[tuple[float, float], ...]


def finds_room_in_any_order(replicas: list[tuple[float, float]], nodes: Nodes) -> bool:
    """Whether Ray, which places replicas one by one where it likes, cannot get stuck. Nodes are (CPUs, GPUs) left."""
    seen: dict[tuple[tuple[tuple[float, float], ...], Nodes], bool] = {}

    def works(left: tuple[tuple[float, float], ...], free: Nodes) -> bool:
        if not left:
            return True
        if (left, free) not in seen:
            seen[left, free] = all(
                (following := _placements(replica, free)) and all(works(_without(left, replica), f) for f in following)
                for replica in set(left)
            )
        return seen[left, free]

    return works(tuple(sorted(replicas)), tuple(sorted(nodes)))


def _without(left: tuple[tuple[float, float], ...], replica: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    at = left.index(replica)
    return left[:at] + left[at + 1 :]


def _placements(replica: tuple[float, float], free: Nodes) -> set[Nodes]:
    found = set()
    for at, (cpus, gpus) in enumerate(free):
        node = (round(cpus - replica[0], 4), round(gpus - replica[1], 4))
        if min(node) >= 0:
            found.add(tuple(sorted((*free[:at], node, *free[at + 1 :]))))
    return found


def test_every_replica_finds_room_whatever_the_order(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of(manifests, monkeypatch, tmp_path)
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    node = (float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))
    assert finds_room_in_any_order(replicas_of(config), (node,) * workers["replicas"])


def test_replicas_that_can_get_stuck_are_found() -> None:
    small_and_chat = [(2.0, 0.25), (2.0, 0.25), (2.0, 0.8), (2.0, 0.8)]
    assert not finds_room_in_any_order(small_and_chat, ((8.0, 1.0), (8.0, 1.0)))


def test_two_engines_of_vllm_never_share_a_gpu(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each starts only where most of the GPU's memory is free, and would find that the other one has it."""
    for model in config_of(manifests, monkeypatch, tmp_path).models_with(StreamOptions):
        assert model.gpus == 0 or model.gpus > 0.5


BASE_BYTES = {"gateway": 300 << 20, "decode worker": 150 << 20, "classifier": 500 << 20, "chat": 1900 << 20}
"""Resident without caches, rounded up from a running system on a CPU (docs/deploy.md); Ray's own processes: 1 GiB."""


def test_the_memory_of_a_worker_holds_what_may_be_placed_on_it(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At the worst: the largest replicas that fit there together, their caches full, and Ray's object store."""
    config = config_of(manifests, monkeypatch, tmp_path)
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    ray = (1 << 30) + int(workers["rayStartParams"]["object-store-memory"])
    sized = list(zip(replicas_of(config), _resident_bytes(config), strict=True))
    together = max(
        sum(size for _, size in chosen)
        for number in range(len(sized) + 1)
        for chosen in itertools.combinations(sized, number)
        if sum(cpus for (cpus, _), _ in chosen) <= float(limits["cpu"])
        and sum(gpus for (_, gpus), _ in chosen) <= float(limits.get("nvidia.com/gpu", 0))
    )
    assert together + ray <= _bytes(limits["memory"])


def _resident_bytes(config: ResolvedConfig) -> list[int]:
    """Host memory of every replica, in the order of ``replicas_of``. On a GPU the KV cache lies in the GPU's memory."""
    gateway, media, mib = config.settings.gateway, config.settings.media, 1 << 20
    assert isinstance(gateway.media_workers, int)
    door = BASE_BYTES["gateway"] + gateway.media_workers * BASE_BYTES["decode worker"] + media.cache_bytes
    sizes = [door] * gateway.replicas
    for model in config.models:
        size = BASE_BYTES["classifier"]
        if isinstance(options := model.options, StreamOptions):
            size = BASE_BYTES["chat"] + (options.image_cache_mb + (0 if model.gpus else options.kv_cache_mb)) * mib
        sizes += [size] * model.replicas
    return sizes


def _bytes(quantity: str) -> int:
    units = {"Mi": 1 << 20, "Gi": 1 << 30}
    return int(quantity[:-2]) * units[quantity[-2:]]


def test_ray_and_nothing_else_fills_dev_shm(rayservice: Manifest) -> None:
    (workers,) = rayservice["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (shm,) = [v["emptyDir"] for v in workers["template"]["spec"]["volumes"] if v["name"] == "shm"]
    assert shm["medium"] == "Memory"
    assert int(workers["rayStartParams"]["object-store-memory"]) <= _bytes(shm["sizeLimit"]) - (128 << 20)


def test_what_an_engine_writes_while_running_lies_on_a_volume(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of(manifests, monkeypatch, tmp_path)
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    container = workers["template"]["spec"]["containers"][0]
    volumes = {v["name"]: v for v in workers["template"]["spec"]["volumes"]}
    writable = {
        Path(mount["mountPath"]): volumes[mount["name"]]["emptyDir"].get("sizeLimit")
        for mount in container["volumeMounts"]
        if "emptyDir" in volumes[mount["name"]]
    }
    cache = Path(engine_environment(config.run_dir)["VLLM_CACHE_ROOT"])
    (limit,) = [size for path, size in writable.items() if cache.is_relative_to(path)]
    assert _bytes(limit) >= 1 << 30
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    for name in ("HOME", "XDG_CACHE_HOME"):
        assert any(Path(environment[name]).is_relative_to(path) for path in writable)
    assert set(engine_environment(config.run_dir)) & set(environment) == set()  # one place says what an engine gets


def test_what_is_served_chats_with_weights_that_are_there(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = config_of(manifests, monkeypatch, tmp_path).models_with(StreamOptions)
    assert models
    for model in models:
        _, variant = find(model.id)
        folder = model.checkpoint_dir or variant.weights
        assert folder is not None, f"{model.id} has no weights in the image: set checkpoint_dir"
        if model.checkpoint_dir is None and not folder.is_dir():
            pytest.skip(f"{model.id} is not trained here: no {folder.name} below models/checkpoints")
        if model.checkpoint_dir is None:
            assert read_card(model).limits["max_output_tokens"] >= 1


def test_a_stream_that_has_begun_may_end_before_its_pod_or_cluster_goes(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = config_of(manifests, monkeypatch, tmp_path).settings
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    spec = workers["template"]["spec"]
    container = spec["containers"][0]
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    deadline_s = settings.gateway.default_deadline_s
    assert int(seconds) >= deadline_s + 10  # ten seconds until no Service sends anything here
    assert spec["terminationGracePeriodSeconds"] >= int(seconds) + deadline_s + settings.drain_s
    assert service["spec"]["rayClusterDeletionDelaySeconds"] >= deadline_s + settings.drain_s + 30


def test_the_config_file_is_where_the_pods_mount_it(rayservice: Manifest) -> None:
    cluster = rayservice["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        container = group["template"]["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["VIREO_CONFIG"] in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_every_servicer_function_can_be_imported(rayservice: Manifest) -> None:
    for name in serve_config(rayservice)["grpc_options"]["grpc_servicer_functions"]:
        module, _, function = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_the_import_path_resolves(rayservice: Manifest) -> None:
    (application,) = serve_config(rayservice)["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_the_application_is_built_from_what_the_pods_mount(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = config_of(manifests, monkeypatch, tmp_path)
    (service,) = [m for m in manifests if m["kind"] == "RayService"]
    app = importlib.import_module("serving.app")
    built: list[ResolvedConfig] = []
    monkeypatch.setattr(app, "build_graph", built.append)
    app.build_app(serve_config(service)["applications"][0]["args"])
    assert [config.settings for config in built] == [expected.settings]
