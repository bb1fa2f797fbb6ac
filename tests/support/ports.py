"""Free ports for servers under test."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_port() -> int:
    """A TCP port that nobody listens on now. Another process may take it at any time: bind it soon."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """``count`` free TCP ports. None is given out twice in one test process: who got it may not have bound it yet."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) not in _given:
                _given.add(port)
                found.append(port)
    return found


_given: set[int] = set()
