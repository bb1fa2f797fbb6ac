"""What HAProxy does and says by itself on the HTTP port: every answer has the shape and the request id of ours.

Not within reach of HAProxy 2.8's configuration: what its parser refuses before there is a request (a malformed line,
header, length or chunk; headers over the limit or too late) is answered with a page of its own, and without an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from serving.config import ResolvedConfig
from serving.errors import InvalidRequest, MethodNotAllowed, NotReady, ServingError, SlowBody, UnknownPath
from serving.front.status import error_body, http_error, to_serving_error
from serving.system.haproxy_callers import REFUSAL, caller_rules, first_places
from serving.system.haproxy_words import NAME_ANSWER, REQUEST_ID_RULES, quoted, quoted_format

AWAY: Final = NotReady(
    "no gateway can be reached now: the system starts, or replaces one. Retry in 1 s", retry_after_s=1.0
)
METHODS: Final = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
"""Each of them is possible on some path."""
_PASSED_ON: Final = (*METHODS, "PUT", "PATCH", "TRACE")
"""Methods that the gateway's HTTP server knows. It answers others with a text of its own."""
_WORK: Final = "METH_POST !{ path_end /sync }"
"""What takes a place in a gateway. Who waits for a job holds none."""
_NOT_JSON: Final = "{ res.hdr(content-type) -m beg text/plain }"
_EXPOSED: Final = (
    "x-request-id, retry-after, allow, etag, content-range, accept-ranges, location, x-vireo-video-id, x-vireo-image-id"
)


def late(config: ResolvedConfig) -> SlowBody:
    """The error of a request that does not arrive in time."""
    limit_s = config.settings.limits.body_timeout_s
    return SlowBody(f"the request did not arrive in full within {limit_s:g} s, the limit; send it faster, or less")


def default_answers(config: ResolvedConfig) -> Iterator[str]:
    """Yield the lines about what HAProxy says when something goes wrong."""
    errors = {
        400: InvalidRequest("the request is no valid HTTP; correct it"),
        408: late(config),
        500: to_serving_error(RuntimeError()),
        502: AWAY,
        503: AWAY,
        504: AWAY,
    }
    for status, error in errors.items():
        yield f"http-error status {status} {reply(error)}"


def http_rules(config: ResolvedConfig) -> Iterator[str]:
    """Yield the lines that come first in the HTTP front end."""
    yield from REQUEST_ID_RULES
    yield NAME_ANSWER
    yield "http-request set-var(txn.oip) bool(true) if { path_beg /v2/ } or { path /v2 }"
    # There is nothing to change to: without the header, the server answers as RFC 9110 has it.
    yield "http-request del-header upgrade"
    yield from _cors_rules(config.settings.http.cors_origins)
    unknown_method = MethodNotAllowed("this method is possible on no path; OPTIONS tells those of a path")
    yield f"http-request return status 501 {reply(unknown_method)} if !{{ method {' '.join(_PASSED_ON)} }}"
    yield f'http-request return status 204 hdr allow "{", ".join(METHODS)}" if METH_OPTIONS {{ url -m str * }}'
    nothing = UnknownPath("there is nothing at this path; see /openapi.json for the paths")
    # Ray Serve looks at the path as decoded.
    yield f"http-request return status 404 {reply(nothing)} if {{ path,url_dec -m str -i /-/routes }}"
    refuse = f"status {http_error(REFUSAL)[0]} {reply(REFUSAL)}"
    yield from caller_rules(config, refuse, _WORK, first_places(config.settings.gateway.max_in_flight))


def backend_rules(config: ResolvedConfig) -> Iterator[str]:
    """Yield the lines that come first in the back end of the gateways."""
    # HAProxy can send a request again, to another gateway, only if it had all of it before it sent it the first time.
    # What does not fit into its buffer is passed on at once; so is what waits for leave to send its body, which HAProxy
    # would give before anybody has looked at the request.
    timeout_ms = round(1e3 * config.settings.limits.body_timeout_s)
    yield f"http-request wait-for-body time {timeout_ms}ms if METH_POST !{{ req.hdr(expect) -m found }}"
    # Vireo's errors are JSON. What is not comes from the servers around it: Ray Serve, its own proxy, uvicorn.
    for status in (400, 500):
        yield f"http-response return status {status} default-errorfiles if {{ status {status} }} {_NOT_JSON}"
    yield f"http-response return status 503 default-errorfiles if {{ status 400:599 }} {_NOT_JSON}"


def _cors_rules(origins: tuple[str, ...]) -> Iterator[str]:
    """Credentials are never allowed to come along by themselves: a key is a header that the page sets."""
    if not origins:
        return
    if "*" in origins:
        yield "http-request set-var(txn.origin) str(*) if { req.hdr(origin) -m found }"
    else:
        yield f"http-request set-var(txn.origin) req.fhdr(origin) if {{ req.fhdr(origin) -m str {' '.join(origins)} }}"
        yield "http-after-response add-header vary origin"
    is_ours = "{ var(txn.origin) -m found }"
    preflight = (
        f'hdr access-control-allow-methods "{", ".join(METHODS)}" '
        "hdr access-control-allow-headers %[req.fhdr(access-control-request-headers)] "
        "hdr access-control-max-age 600"
    )
    asks = "METH_OPTIONS { req.hdr(access-control-request-method) -m found }"
    yield f"http-request return status 204 {preflight} if {asks} {is_ours}"
    yield f"http-after-response set-header access-control-allow-origin %[var(txn.origin)] if {is_ours}"
    yield f'http-after-response set-header access-control-expose-headers "{_EXPOSED}" if {is_ours}'


def reply(error: ServingError) -> str:
    """Return type, body and headers of an HTTP answer, as words of the configuration."""
    _status, headers, _body = http_error(error)
    named = " ".join(f"hdr {name.decode()} {quoted_format(value.decode())}" for name, value in headers)
    oip, openai = (error_body(error, path).decode().replace("'", r"\u0027") for path in ("/v2/", "/v1/"))
    # Below /v2 an error is spelt as the Open Inference Protocol has it.
    body = f"%[var(txn.oip,0),add(0),bool,iif('{oip}','{openai}')]"
    return f"content-type application/json lf-string {quoted(body)} {named}".rstrip()
