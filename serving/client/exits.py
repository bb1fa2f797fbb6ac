"""What a command ends with: one set of exit codes for all of them, described in docs/cli.md."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    """The server failed, or this command did; or what was asked for is not so: an objective missed, not ready."""
    USAGE = 2
    """The command line, a file that it names or the configuration is wrong; no request was answered."""
    REFUSED = 3
    """The server refuses the request: an image, a model, a setting, a budget or the key must change."""
    UNREACHABLE = 4
    """Nobody answers at that address, or something that is not Vireo; nothing is running."""
    PARTLY = 5
    """Some of several files have an answer and others have not."""
    BUSY = 6
    """The server is full, draining or not ready, or the tenant's quota is spent: ask again later."""
    INTERRUPTED = 130
    """Ctrl-C, as a shell expects it."""


SUMMARY = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the server, 4 unreachable, 5 partly done, "
    "6 busy (ask again), 130 interrupted."
)
