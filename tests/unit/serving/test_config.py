"""Configuration: what is refused, who overrides whom, and that no secret is ever shown."""

from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
import redis.connection
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from models.registry import default_variants
from serving.config import (
    PROFILES,
    JobOptions,
    ModelSettings,
    ResolvedConfig,
    Settings,
    StreamOptions,
    TenantSettings,
    UnaryOptions,
    from_mapping,
    load,
    mask_url,
    resolve,
    resolve_model,
    run_dir_of,
)
from serving.errors import ConfigError

DIGEST = "ab" * 32
NANO, CHAT, VIDEO, _ = (variant.id for _, variant in default_variants())
TENANTS = [{"name": "team-a", "api_key_sha256": [DIGEST]}]
CLUSTER = {"profile": "cluster", "tenants": TENANTS, "redis": {"secret": "s" * 32}}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIREO_CONFIG", "VIREO_SECRETS", "VIREO_SET", "VIREO_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def write(folder: Path, text: str) -> Path:
    path = folder / "vireo.yaml"
    path.write_text(text)
    return path


# -- what is refused -------------------------------------------------------------------------------------------------


def sections() -> list[tuple[str, ...]]:
    """The path of every section, the root being ()."""
    found: list[tuple[str, ...]] = [()]
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            found.append((name,))
    return found


@pytest.mark.parametrize("section", sections(), ids=".".join)
def test_unknown_key_is_refused_by_name_in_every_section(section: tuple[str, ...]) -> None:
    written: dict[str, Any] = {"no_such_key": 1}
    for name in reversed(section):
        written = {name: written}
    with pytest.raises(ConfigError, match=r"\.".join((*section, "no_such_key"))):
        from_mapping(written)


@pytest.mark.parametrize("item", [{"models": [{"id": "m", "replica": 2}]}, {"tenants": [{"name": "t", "key": "x"}]}])
def test_unknown_key_in_a_list_is_refused_with_its_place(item: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"(models\.0\.replica|tenants\.0\.key)"):
        from_mapping(item)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("gateway", "replicas", "2"),
        ("gateway", "replicas", True),
        ("gateway", "replicas", 2.5),
        ("gateway", "replicas", 0),
        ("gateway", "replicas", None),
        ("gateway", "media_workers", 0),
        ("gateway", "media_workers", -1),
        ("gateway", "media_workers", "many"),
        ("gateway", "cpus", float("nan")),
        ("gateway", "cpus", float("inf")),
        ("gateway", "default_deadline_s", -1),
        ("http", "port", 0),
        ("http", "port", 65536),
        ("http", "host", 5),
        ("redis", "timeout_s", float("inf")),
        ("redis", "cache", "yes"),
        ("redis", "url", "foo@bar"),
        ("redis", "url", "http://host"),
        ("redis", "url", ""),
        ("redis", "secret", ""),
        ("redis", "secret", "short"),
        ("media", "max_pixels", 0),
        ("media", "max_tiles_per_request", 0),
        ("media", "cache_bytes", -1),
        ("media", "fetch_timeout_s", 0),
        ("media", "allowed_hosts", "example.org"),
        ("media", "allowed_hosts", ["https://example.org/"]),
        ("media", "allowed_hosts", ["example.org", "10.0.0.1"]),
        ("media", "allowed_hosts", ["*"]),
        ("limits", "max_images", 10**9),
        ("guard", "watch_at", 1.0),
        ("guard", "suspect_at", 0.2),
        ("guard", "screen", "on"),
    ],
)
def test_value_of_a_wrong_type_or_range_is_refused_by_name(section: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{key}"):
        from_mapping({section: {key: value}})


@pytest.mark.parametrize(
    "written",
    [
        {"models": []},
        {"models": [{"id": ""}]},
        {"models": [{"id": "m"}, {"id": "m"}]},
        {"models": [{"id": "m", "threads": 0}]},
        {"models": [{"id": "m", "device": "tpu"}]},
        {"models": [{"id": "m", "options": [1]}]},
        {"models": {"id": "m"}},
        {"tenants": [{"name": "Team A"}]},
        {"tenants": [{"name": "t"}, {"name": "t"}]},
        {"tenants": [{"name": "t", "api_key_sha256": ["not a digest"]}]},
        {"tenants": [{"name": "a", "api_key_sha256": [DIGEST]}, {"name": "b", "api_key_sha256": [DIGEST]}]},
        {"tenants": [{"name": "t", "guard": "on"}]},
        {"http": None},
        {"http": []},
        {"profile": "laptop"},
        {"profile": None},
        {"profile": ["local"]},
        {"log_level": "loud"},
        {"drain_s": float("nan")},
        {1: 2},
    ],
)
def test_settings_that_make_no_sense_are_a_config_error(written: Any) -> None:
    with pytest.raises(ConfigError):
        from_mapping(written)


def test_wrong_value_is_not_repeated_in_the_message() -> None:
    """It may be a key put into the wrong field."""
    with pytest.raises(ConfigError) as caught:
        from_mapping({"tenants": [{"name": "t", "api_key_sha256": ["vk-THE-KEY-ITSELF"]}]})
    assert "vk-THE-KEY-ITSELF" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["just words", "- a\n- b", "[]", "0", "a: [", "\x00", "!!python/object/apply:os.getcwd []"]
)
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"vireo\.yaml"):
        load(write(tmp_path, text))


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"log_level: \xff\xfe")
    for path in (tmp_path / "absent.yaml", tmp_path, tmp_path / "latin"):
        with pytest.raises(ConfigError, match="cannot read"):
            load(path)


@pytest.mark.parametrize(
    "override", ["http.port", "", "http.port.deep=1", "models.0.replicas=2", "http.port=[1,", "x=1"]
)
def test_override_that_makes_no_sense_is_refused(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "http: {port: 8001}\nmodels: [{id: m}]")
    with pytest.raises(ConfigError):
        load(path, [override])


# -- who overrides whom ----------------------------------------------------------------------------------------------


def test_empty_file_is_the_local_profile(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == load() == Settings()
    assert load().profile == "local"


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_fills_what_the_user_did_not_write(profile: Any) -> None:
    settings = from_mapping({"profile": profile, "http": {"port": 8123}})
    assert settings.profile == profile
    assert settings.http.port == 8123
    for section, values in PROFILES[profile].items():
        if section in ("models", "drain_s"):
            continue
        for key, value in values.items():
            assert getattr(getattr(settings, section), key) == value


def test_user_wins_over_the_profile_key_by_key() -> None:
    settings = from_mapping({"profile": "cluster", "gateway": {"replicas": 7}})
    assert settings.gateway.replicas == 7
    assert settings.gateway.media_workers == PROFILES["cluster"]["gateway"]["media_workers"]


def test_file_then_environment_then_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "http: {port: 8001, grpc_port: 9001}\ndrain_s: 1\nlog_level: debug")
    assert load(path).http.port == 8001
    monkeypatch.setenv("VIREO_SET", "http.port=8002; drain_s=2.5 ;")
    settings = load(path)
    assert (settings.http.port, settings.http.grpc_port, settings.drain_s) == (8002, 9001, 2.5)
    settings = load(path, ["http.port=8003", "http.grpc_port=9003", "http.port=8004"])
    assert (settings.http.port, settings.http.grpc_port, settings.drain_s) == (8004, 9003, 2.5)
    assert settings.log_level == "debug"


def test_secrets_lie_in_files_named_after_their_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes mounts them: links into a folder that is exchanged as a whole."""
    data = tmp_path / "..2026"
    data.mkdir()
    files = {"redis.secret": "0" * 32, "redis.password": "1234\n", "tenants": json.dumps(TENANTS)}
    for name, text in files.items():
        (data / name).write_text(text)
        (tmp_path / name).symlink_to(data / name)
    monkeypatch.setenv("VIREO_SECRETS", str(tmp_path))
    settings = load(args={"redis": {"url": "redis://host:6379/0"}})
    assert (settings.redis.secret, settings.redis.password) == ("0" * 32, "1234")
    assert settings.tenants[0].api_key_sha256 == (DIGEST,)
    monkeypatch.setenv("VIREO_SET", "redis.secret=from-the-environment")
    assert load(args={"redis": {"url": "redis://host:6379/0"}}).redis.secret == "from-the-environment"


@pytest.mark.parametrize(("name", "text"), [("redis.pasword", "x"), ("no_such", "x"), ("tenants", "[")])
def test_wrong_secret_file_is_named_and_its_text_is_not(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(text + "Q7xSECRET")
    monkeypatch.setenv("VIREO_SECRETS", str(tmp_path))
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as caught:
        load()
    assert "Q7xSECRET" not in str(caught.value)


def test_folder_of_secrets_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_SECRETS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="VIREO_SECRETS"):
        load()


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://host/0?ssl_ca_certs=/ca.crt", "unix:///r.sock"])
def test_password_goes_into_the_url_whatever_it_holds(url: str) -> None:
    password = "a/b@c:d?e#f%20 &"
    config = resolve(from_mapping({"redis": {"url": url, "password": password}}))
    assert redis.connection.parse_url(config.store_url)["password"] == password
    bare, with_it = redis.connection.parse_url(url), redis.connection.parse_url(config.store_url)
    assert {name: with_it[name] for name in bare} == bare
    assert_hidden(config, password)


@pytest.mark.parametrize("url", ["embedded", "redis://:other@host", "redis://user@host"])
def test_password_without_a_place_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\.password"):
        resolve(from_mapping({"redis": {"url": url, "password": "Q7x"}}))


def test_file_is_found_by_environment_and_by_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_CONFIG", str(write(tmp_path, "http: {port: 8001}")))
    assert load().http.port == 8001
    other = tmp_path / "other.yaml"
    other.write_text("http: {port: 8002}")
    assert load(other).http.port == 8002


def test_profile_by_argument_then_settings_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIREO_PROFILE", "gpu")
    assert load().profile == "gpu"
    path = write(tmp_path, "profile: cluster")
    assert load(path).profile == "cluster"
    assert load(path, ["profile=local"]).profile == "local"
    assert load(path, profile="gpu").profile == "gpu"


@pytest.mark.parametrize("text", ["http:", "{}"])
def test_override_opens_a_section_that_the_file_left_empty(tmp_path: Path, text: str) -> None:
    assert load(write(tmp_path, text), ["http.port=8005"]).http.port == 8005


def test_override_takes_lists_and_flags_as_yaml() -> None:
    settings = load(None, ["models=[{id: m, replicas: 3}]", "redis.cache=false", "http.host='::1'"])
    assert settings.models == (ModelSettings(id="m", replicas=3),)
    assert settings.redis.cache is False
    assert settings.http.host == "::1"


# -- nothing is written to -------------------------------------------------------------------------------------------


def test_settings_and_profiles_cannot_change_and_do_not() -> None:
    before = json.dumps(PROFILES)
    written = {"profile": "gpu", "gateway": {"replicas": 3}, "models": [{"id": NANO}]}
    copy = json.loads(json.dumps(written))
    settings = from_mapping(written)
    dump = settings.model_dump()
    config = resolve(settings)
    config.describe()
    assert written == copy
    assert json.dumps(PROFILES) == before
    assert settings.model_dump() == dump
    for target, name in ((settings, "drain_s"), (settings.http, "port"), (config, "secret"), (config.settings, "http")):
        with pytest.raises((AttributeError, ValueError)):
            setattr(target, name, 1)


# -- resolve ---------------------------------------------------------------------------------------------------------


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    if isinstance(value, list | tuple):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


@pytest.mark.parametrize(("written", "need_key"), [({}, False), ({"profile": "gpu"}, True), (CLUSTER, True)])
def test_metrics_need_a_key_outside_the_local_profile(written: dict[str, Any], need_key: bool) -> None:
    assert from_mapping(written).http.metrics_need_key is need_key
    chosen = from_mapping({**written, "http": {"metrics_need_key": not need_key}})
    assert chosen.http.metrics_need_key is not need_key


@pytest.mark.parametrize("written", [{}, {"profile": "gpu"}, CLUSTER, {"models": [{"id": NANO, "gpus": 1.0}]}])
def test_auto_does_not_survive(written: dict[str, Any]) -> None:
    config = resolve(from_mapping(written))
    assert "auto" not in leaves(config.settings.model_dump(mode="json"))
    assert "auto" not in leaves(config.describe())
    assert config.media_workers == config.settings.gateway.media_workers
    assert config.secret == config.settings.redis.secret
    assert str(config.run_dir) == config.settings.run_dir


def test_resolving_a_resolved_configuration_changes_nothing() -> None:
    config = resolve(from_mapping({"models": [{"id": NANO, "cpus": 2.4}, {"id": CHAT}, {"id": VIDEO}]}))
    assert resolve(config.settings) == config


def test_device_follows_the_gpus_that_are_reserved() -> None:
    models = [{"id": NANO}, {"id": CHAT, "gpus": 0.5}, {"id": VIDEO, "gpus": 1, "device": "cpu"}]
    config = resolve(from_mapping({"models": models}))
    assert [model.device for model in config.models] == ["cpu", "cuda", "cpu"]


@pytest.mark.parametrize(("cpus", "threads", "expected"), [(0.25, "auto", 1), (3.0, "auto", 3), (1.0, 6, 6)])
def test_threads_are_the_share_of_the_machine(cpus: float, threads: Any, expected: int) -> None:
    assert resolve_model(ModelSettings(id=NANO, cpus=cpus, threads=threads)).threads == expected


def test_secret_is_made_anew_each_time_and_kept_when_given() -> None:
    assert resolve(from_mapping({})).secret != resolve(from_mapping({})).secret
    assert len(resolve(from_mapping({})).secret) >= 32
    assert resolve(from_mapping({"redis": {"secret": "g" * 20}})).secret == "g" * 20


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.1.2.3", "example.org", "127.0.0.1.example.org", "0"])
def test_public_address_without_keys_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="without API keys"):
        resolve(from_mapping({"http": {"host": host}}))
    with pytest.raises(ConfigError, match="without API keys"):
        resolve(from_mapping({"http": {"host": host}, "tenants": [{"name": "t"}]}))
    config = resolve(from_mapping({"http": {"host": host}, "tenants": TENANTS}))
    assert not config.allow_anonymous_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_without_keys_lets_anonymous_callers_in_until_there_are_keys(host: str) -> None:
    assert resolve(from_mapping({"http": {"host": host}})).allow_anonymous_loopback
    assert not resolve(from_mapping({"http": {"host": host}, "tenants": TENANTS})).allow_anonymous_loopback


def test_cluster_needs_keys_a_redis_and_a_secret_shared_by_all() -> None:
    resolve(from_mapping(CLUSTER))
    with pytest.raises(ConfigError, match=r"redis\.url"):
        resolve(from_mapping({**CLUSTER, "redis": {"url": "embedded", "secret": "s" * 32}}))
    with pytest.raises(ConfigError, match=r"redis\.secret"):
        resolve(from_mapping({"profile": "cluster", "tenants": TENANTS}))
    with pytest.raises(ConfigError, match="API keys"):
        resolve(from_mapping({"profile": "cluster", "redis": {"secret": "s" * 32}}))


def test_http_and_grpc_cannot_share_a_port() -> None:
    with pytest.raises(ConfigError, match="both 9000"):
        resolve(from_mapping({"http": {"port": 9000}}))


def test_run_dir_too_long_for_a_socket_is_refused_for_an_embedded_redis_only() -> None:
    long = "/tmp/" + "x" * 120
    with pytest.raises(ConfigError, match="limit of a socket is 107"):
        resolve(from_mapping({"run_dir": long}))
    assert resolve(from_mapping({"run_dir": long, "redis": {"url": "redis://h:1/0"}})).store_url == "redis://h:1/0"


def test_paths_follow_the_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(from_mapping({"run_dir": "/run/v"}))
    assert config.store_url == "unix:///run/v/redis/redis.sock"
    assert config.metrics_dir == Path("/run/v/metrics")
    monkeypatch.setenv("VIREO_RUN_DIR", "/run/w")
    one, other = (resolve(from_mapping({"http": {"port": port}})).run_dir for port in (8001, 8002))
    assert one != other
    assert one.parent == other.parent == Path("/run/w")


# -- secrets ---------------------------------------------------------------------------------------------------------

_SECRET = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=8, max_size=40).map(
    lambda text: "Q7x" + text + "Q7x"
)


def assert_hidden(config: Any, *hidden: str) -> None:
    shown = [json.dumps(config.describe(), ensure_ascii=False), repr(config), str(config.settings), str(config)]
    shown += [str(leaf) for leaf in leaves(config.describe())]
    for text in shown:
        for secret in hidden:
            assert secret not in text


@given(secret=_SECRET.filter(lambda text: len(text) >= 16), password=_SECRET, user=_SECRET)
def test_no_secret_is_shown(secret: str, password: str, user: str) -> None:
    url = f"redis://{user}:{password}@host:6379/0"
    config = resolve(from_mapping({"redis": {"secret": secret, "url": url}, "tenants": TENANTS}))
    assert config.store_url == url
    assert_hidden(config, secret, password, user, DIGEST)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:Q7xSECRET@host:6379/0",
        "rediss://Q7xSECRET@host",
        "redis://host:6379/0?password=Q7xSECRET",
        "redis://host:6379/0?username=u&password=a@Q7xSECRET",
        "redis://u:a?Q7xSECRET@host/0",
        "redis://u:a@b@Q7xSECRET@host/0",
        "redis://u:a/Q7xSECRET@host/0",
        "redis://u:a://Q7xSECRET@host/0",
        "unix://Q7xSECRET@/run/redis.sock?db=0",
        "unix:///run/redis.sock?password=Q7xSECRET",
        "Q7xSECRET",
    ],
)
def test_url_is_shown_without_what_may_be_secret(url: str) -> None:
    assert "Q7xSECRET" not in str(mask_url(url))


def test_url_without_secrets_is_shown_whole() -> None:
    for url in ("redis://host:6379/0", "unix:///run/redis.sock", "embedded", None):
        assert mask_url(url) == url
    assert mask_url("redis://u:p@host:6379/0") == "redis://***@host:6379/0"


def test_generated_secret_is_not_shown_either() -> None:
    config = resolve(from_mapping({}))
    assert_hidden(config, config.secret)


def test_description_is_complete_and_plain_enough_for_a_log() -> None:
    config = resolve(from_mapping({"tenants": TENANTS}))
    described = json.loads(json.dumps(config.describe()))
    assert set(described) == set(config.__dataclass_fields__)
    assert set(described["settings"]) == set(Settings.model_fields)


@pytest.mark.parametrize(
    "section",
    [
        Settings,
        TenantSettings,
        ModelSettings,
        UnaryOptions,
        StreamOptions,
        JobOptions,
        *(type(v) for v in vars(Settings()).values() if isinstance(v, BaseModel)),
    ],
)
def test_every_field_says_what_it_is(section: type[Any]) -> None:
    for name, field in getattr(section, "model_fields", {}).items():
        is_section = isinstance(field.default, BaseModel)
        assert is_section or field.description, f"{section.__name__}.{name} has no description"


# -- models ----------------------------------------------------------------------------------------------------------


def test_engine_of_a_chat_model_is_decided() -> None:
    models = [{"id": CHAT}, {"id": "texthawk2-7b", "options": {"engine": "fake"}, "gpus": 1.0}]
    first, second = resolve(from_mapping({"models": models})).models_with(StreamOptions)
    assert (first.options.engine in ("vllm", "torch"), first.device, first.threads) == (True, "cpu", 1)
    assert (second.options.engine, second.device) == ("fake", "cuda")


@pytest.mark.parametrize("served", [[NANO], [CHAT], [VIDEO], [VIDEO, NANO], [CHAT, "texthawk2-7b"]])
def test_any_models_but_none_may_be_served(served: list[str]) -> None:
    config = resolve(from_mapping({"models": [{"id": name} for name in served]}))
    assert [model.id for model in config.models] == served
    kinds = [config.models_with(kind) for kind in (UnaryOptions, StreamOptions, JobOptions)]
    assert sorted(model.id for models in kinds for model in models) == sorted(served)


def test_options_are_those_of_the_kind_of_delivery() -> None:
    config = resolve(load(overrides=[f"models=[{{id: {NANO}, options: {{max_queue: 8}}}}, {{id: {VIDEO}}}]"]))
    (classifier,), (video,) = config.models_with(UnaryOptions), config.models_with(JobOptions)
    assert classifier.options == UnaryOptions(max_queue=8)
    assert video.options == JobOptions()
    assert (video.family, video.num_ranks) == ("vdit", 1)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"id": "no-such-model"}, r"unknown model 'no-such-model'; known models: .*dyn-perceiver-nano"),
        (
            {"id": NANO, "options": {"max_qeue": 8}},
            r"models\.0\.options\.max_qeue: .*its options are: max_batch, max_queue",
        ),
        ({"id": NANO, "options": {"kv_cache_mb": 8}}, r"models\.0\.options\.kv_cache_mb: .* no such option"),
        ({"id": CHAT, "options": {"max_num_seqs": "8"}}, r"models\.0\.options\.max_num_seqs: "),
        ({"id": VIDEO, "options": {"ranks": 0}}, r"models\.0\.options\.ranks: "),
        ({"id": VIDEO, "options": {"spare_experts": 2}}, r"spare_experts is 2 and ranks is 1; set ranks"),
    ],
)
def test_model_that_cannot_be_served_so_is_refused_with_what_can(model: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve(from_mapping({"models": [model]}))


def test_models_that_are_named_are_served_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, f"models: [{{id: {NANO}, replicas: 3}}, {{id: {CHAT}}}]")
    monkeypatch.chdir(tmp_path)
    named = load(path, models=[VIDEO, f"{NANO}=weights"]).models
    assert named == (ModelSettings(id=VIDEO), ModelSettings(id=NANO, replicas=3, checkpoint_dir=tmp_path / "weights"))
    assert load(models=[CHAT]).models == (ModelSettings(id=CHAT),)
    assert load(profile="gpu", models=[CHAT]).models[0].gpus > 0.5, "set up as the profile says"
    with pytest.raises(ConfigError, match="model ids repeat"):
        load(models=[CHAT, CHAT])


def test_model_is_set_up_by_options(tmp_path: Path) -> None:
    (model,) = load(models=[NANO], options=["max_batch=8", "replicas=2", f"{NANO}.gpus=0.5", "gpus=1"]).models
    assert model == ModelSettings(id=NANO, replicas=2, gpus=1, options={"max_batch": 8})
    dotted = "timm:resnet18.a1_in1k"
    first, second = load(models=[dotted, CHAT], options=[f"{dotted}.random_weights=true", f"{CHAT}.max_queue=3"]).models
    assert (first.options, second.options) == ({"random_weights": True}, {"max_queue": 3})
    path = write(tmp_path, f"models: [{{id: {NANO}, options: {{max_batch: 4, max_queue: 5}}}}]")
    assert load(path, options=["max_batch=8"]).models[0].options == {"max_batch": 8, "max_queue": 5}
    defaults = load(options=[f"{VIDEO}.dtype=bfloat16"]).models
    assert [model.id for model in defaults if model.options] == [VIDEO]


@pytest.mark.parametrize("option", ["max_batch=8", f"{NANO}.max_batch", "no-such-model.max_batch=8"])
def test_option_of_no_single_model_is_refused_with_the_models(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"for no single model.*served are {NANO}, {CHAT}"):
        load(models=[NANO, CHAT], options=[option])


def test_options_leave_what_was_written_alone() -> None:
    written = {"models": [{"id": NANO, "options": {}}]}
    assert from_mapping(written, options=["max_batch=8", "replicas=2"]).models[0].replicas == 2
    assert written == {"models": [{"id": NANO, "options": {}}]}


@pytest.mark.parametrize("name", ["", "=folder", "no such"])
def test_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.0\.id"):
        load(models=[name])


def test_resolved_models_travel_to_other_processes() -> None:
    config = resolve(
        from_mapping({"models": [{"id": name} for name in (NANO, CHAT, VIDEO, "dyn-perceiver-resnet50-x0375")]})
    )
    assert pickle.loads(pickle.dumps(config)) == config
    assert [model.variant.id for model in config.models] == [model.id for model in config.models]


def test_run_folder_is_known_without_knowing_the_models() -> None:
    written = {"models": [{"id": "no-such-model"}], "run_dir": "/run/v"}
    assert run_dir_of(from_mapping(written)) == Path("/run/v")


def test_cluster_that_makes_clips_needs_a_store_for_them() -> None:
    written = {**CLUSTER, "models": [{"id": VIDEO}]}
    with pytest.raises(ConfigError, match=r"jobs\.store"):
        resolve(from_mapping(written))
    resolve(from_mapping({**written, "jobs": {"store": "s3://bucket"}}))


# -- the secret ------------------------------------------------------------------------------------------------------


def own(tmp_path: Path, **redis: Any) -> ResolvedConfig:
    return resolve(from_mapping({"run_dir": str(tmp_path), "redis": redis}))


def test_secret_that_nobody_has_set_is_that_of_the_start_before(tmp_path: Path) -> None:
    """Ids of jobs follow from it and from idempotency keys, and what lies in Redis is sealed with it."""
    first = own(tmp_path)
    assert not list(tmp_path.iterdir()), "looking writes nothing"
    first.keep_secret()
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    second = own(tmp_path)
    second.keep_secret()
    assert second.secret == first.secret
    assert own(tmp_path / "elsewhere").secret != first.secret


def test_secret_that_somebody_has_set_is_not_written_down(tmp_path: Path) -> None:
    config = own(tmp_path, secret="x" * 32)
    config.keep_secret()
    assert config.secret == "x" * 32
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606])
def test_secret_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    own(tmp_path).keep_secret()
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(ConfigError, match="others may read or replace the secret"):
        own(tmp_path)


def test_secret_that_is_a_link_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x" * 64)
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "secret").symlink_to("real")
    with pytest.raises(ConfigError, match="secret"):
        own(tmp_path)
    (tmp_path / "secret").unlink()
    (tmp_path / "secret").mkdir()
    with pytest.raises(ConfigError, match="secret"):
        own(tmp_path)


def test_secret_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    own(tmp_path).keep_secret()
    (tmp_path / "secret").write_text("short")
    assert len(own(tmp_path).secret) == 64


def test_weights_under_a_licence_that_is_not_open_need_a_word(tmp_path: Path) -> None:
    published = ModelSettings(id="dyn-perceiver-regnety-800mf", checkpoint_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"licence 'none'.*accept_licence"):
        resolve_model(published)
    accepted = resolve_model(published.model_copy(update={"accept_licence": True}))
    assert accepted.variant.weights == tmp_path
    assert resolve_model(accepted.decided()).accept_licence
    assert not resolve_model(ModelSettings(id="dyn-perceiver-nano")).accept_licence
