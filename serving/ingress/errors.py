"""The three errors that only the front door raises; the rest of the tree is in ``serving.errors``."""

from __future__ import annotations

from serving.errors import ClientError, Overloaded


class SlowBody(ClientError):
    """The body did not arrive in time."""

    code = "request_timeout"
    type = "timeout_error"


class NotReady(Overloaded):
    """The server is up and cannot answer yet, or not any more."""

    code = "not_ready"
    type = "server_error"


class UnknownService(ClientError):
    """No gRPC service of that name is known to the health check."""

    code = "service_not_found"
