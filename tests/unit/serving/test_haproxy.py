"""The script in HAProxy's place: what it makes of a configuration like Ray's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serving.config import ResolvedConfig, from_mapping, resolve
from serving.errors import ConfigError
from serving.system import haproxy
from serving.system.haproxy_callers import first_places
from serving.system.haproxy_http import http_rules
from serving.tasks.images.jobs import IMAGES
from serving.tasks.videos.rules import VIDEOS
from tests.support.system import short_folder

RAYS_CONFIG = """global
defaults
    timeout client 3600s
frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind {host}:8000
frontend grpc_frontend
    bind {host}:9000 proto h2
backend http-vireo
backend grpc
listen stats
  bind *:{stats}
"""
KEYED = {"tenants": [{"name": "a", "api_key_sha256": ["ab" * 32]}]}


def config(folder: Path, **settings: object) -> ResolvedConfig:
    return resolve(from_mapping({"run_dir": str(folder), **settings}))


def written_by_wrapper(resolved: ResolvedConfig, monkeypatch: pytest.MonkeyPatch, host: str) -> str:
    """Run the wrapper on a file like Ray's, with a stand-in for HAProxy that prints its file."""
    folder = resolved.run_dir
    binary = folder / "stand-in"
    binary.write_text('#!/bin/sh\ncat "$3"\n')
    binary.chmod(0o700)
    monkeypatch.setattr("serving.system.haproxy.get_haproxy_binary", lambda: str(binary))
    script = haproxy.write_wrapper(resolved, folder)
    path = folder / "haproxy.cfg"
    path.write_text(RAYS_CONFIG.format(metrics=9101, stats=8404, host=host))
    run = subprocess.run([script, "-db", "-f", path], capture_output=True, text=True, check=True)
    return run.stdout


def test_wrapper_moves_every_listener_of_a_loopback_start_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as folder:
        text = written_by_wrapper(config(folder), monkeypatch, "127.0.0.1")
    binds = [line.split()[1] for line in text.splitlines() if " bind " in line]
    assert binds == ["127.0.0.1:9101", "127.0.0.1:8000", "127.0.0.1:9000", "127.0.0.1:8404"]


def test_wrapper_leaves_the_listeners_of_a_public_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as folder:
        resolved = config(folder, http={"host": "0.0.0.0"}, **KEYED)
        text = written_by_wrapper(resolved, monkeypatch, "*")
    binds = [line.split()[1] for line in text.splitlines() if " bind " in line]
    assert binds == [":9101", "*:8000", "*:9000", "*:8404"]


def test_wrapper_bounds_the_time_for_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as folder:
        text = written_by_wrapper(config(folder), monkeypatch, "127.0.0.1")
    assert "    timeout client 3600s\n    timeout http-request 10s\n" in text


def test_wrapper_has_unary_grpc_calls_held_in_full_so_that_they_can_be_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with short_folder() as folder:
        lines = written_by_wrapper(config(folder), monkeypatch, "127.0.0.1").splitlines()
    (rule,) = [line for line in lines if "wait-for-body time 30000ms if { path /vireo.v1.Vireo/Classify " in line]
    assert "Stream" not in rule, "a stream that is open for long would never be forwarded"


def test_wrapper_has_http_bodies_held_in_full_for_as_long_as_they_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_folder() as folder:
        resolved = config(folder, limits={"body_timeout_s": 1.5})
        lines = written_by_wrapper(resolved, monkeypatch, "127.0.0.1").splitlines()
    rule = lines[lines.index("backend http-vireo") + 1]
    assert rule == "    http-request wait-for-body time 1500ms if METH_POST !{ req.hdr(expect) -m found }"


def test_cluster_has_no_origins_as_nobody_would_let_them_in() -> None:
    settings = {"profile": "cluster", "redis": {"url": "redis://x", "secret": "s" * 16}, "jobs": {"store": "s3://x"}}
    with pytest.raises(ConfigError, match=r"http\.cors_origins"):
        resolve(from_mapping({**settings, **KEYED, "http": {"cors_origins": ["*"]}}))


def test_pages_of_other_origins_may_read_which_job_made_a_file() -> None:
    ids = {f"x-vireo-{task.noun}-id" for task in (IMAGES, VIDEOS)}
    with short_folder() as folder:
        lines = list(http_rules(config(folder, http={"cors_origins": ["https://a.b"]})))
    (rule,) = [line for line in lines if "access-control-expose-headers" in line]
    assert ids <= set(rule.split('"')[1].split(", "))


@pytest.mark.parametrize("origin", ["app.example.com", "https://a.b/path", "https://a b", "ftp://a.b", "https://a.b\n"])
def test_origin_that_is_none_is_refused(origin: str) -> None:
    with short_folder() as folder, pytest.raises(ConfigError, match="cors_origins"):
        config(folder, http={"cors_origins": [origin]})


@pytest.mark.parametrize(("places", "first"), [(512, 128), (100, 64), (64, 64), (4, 4), (1, 1)])
def test_caller_that_was_not_told_begins_with_a_quarter_of_the_places_or_a_few(places: int, first: int) -> None:
    assert first_places(places) == first
