"""Words of HAProxy's configuration, and the rules that both of its front ends have."""

from __future__ import annotations

from typing import Final

REQUEST_ID_RULES: Final = (
    "http-request set-var(txn.request_id) req.fhdr(x-request-id) if { req.fhdr_cnt(x-request-id) eq 1 }",
    "http-request set-var(txn.request_id) uuid() unless { var(txn.request_id) -m reg ^[A-Za-z0-9._-]{1,128}$ }",
    "http-request set-header x-request-id %[var(txn.request_id)]",
)
"""The caller's id if it is one and well formed, else a fresh one: whoever sees the request from here on sees this."""
NAME_ANSWER: Final = (
    "http-after-response set-header x-request-id %[var(txn.request_id)] if { var(txn.request_id) -m found }"
)


def quoted(text: str) -> str:
    """Return a text as a word of the configuration that is no format."""
    for special in ("\\", '"', "$"):
        text = text.replace(special, "\\" + special)
    return f'"{text}"'


def quoted_format(text: str) -> str:
    """Return a text as a word of the configuration that is a format without variables."""
    return quoted(text.replace("%", "%%"))
