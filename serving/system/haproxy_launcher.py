"""Runs in HAProxy's place whenever Ray Serve starts it, corrects the start, and becomes HAProxy.

Run by its path, without site-packages (``python -I -S``): standard library only, and little of it, because the door may
be shut meanwhile. Arguments: the sed script of edits, the socket of the door's keeper (``door_keeper``), the
real binary, and Ray's arguments.

A HAProxy that is no successor of another (no ``-sf``) is the first of an actor of Ray, which knows of no gateway yet
and writes a configuration that leads nowhere. If there was a better one it is used instead, until Ray writes its next.
Such a HAProxy also takes the open sockets over from the stand-in, if there is one, which then lets its clients go and
ends.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import sys

EDITED = "# Edited by Vireo.\n"
"""First line of a configuration that needs no more edits."""
LAST_NAME = "last.cfg"
"""Beside Ray's configuration: the last one that led to a gateway, edited."""
FIRST, NEXT = b"first", b"next"
"""What the keeper is told: that this HAProxy has no predecessor, or that it has."""
_KEEPER_TIMEOUT_S = 2.0
_STATE_FILE = re.compile(r"^\s*server-state-file (\S+)", re.MULTILINE)
_PR_SET_PDEATHSIG, _SIGTERM = 1, 15


def main(edits: str, keeper: str, binary: str, *arguments: str) -> None:
    """Become HAProxy."""
    path = arguments[arguments.index("-f") + 1]
    is_first = "-sf" not in arguments
    edit(path, edits)
    keep_or_replace(path, is_first=is_first)
    sockets = ask_keeper(keeper, FIRST if is_first else NEXT)
    # The kernel ends HAProxy together with the actor that has started it: killed, that actor could not.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGTERM)
    os.execv(binary, [binary, *arguments, *sockets])


def edit(path: str, edits: str) -> None:
    """Apply the edits to a configuration of Ray's, once."""
    with open(path) as file:
        if file.readline() == EDITED:
            return
    process = os.posix_spawnp("sed", ["sed", "-i", "-E", "-f", edits, path], {})
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0:
        sys.exit(f"vireo: {path} could not be edited")


def keep_or_replace(path: str, *, is_first: bool) -> None:
    """Remember a configuration that leads to a gateway; replace one that does not yet by the last that did."""
    last = os.path.join(os.path.dirname(path), LAST_NAME)
    with open(path) as file:
        text = file.read()
    if leads_somewhere(text):
        copy(path, last)
    elif is_first and os.path.exists(last):
        copy(last, path)
    if is_first and (found := _STATE_FILE.search(text)) and os.path.exists(found[1]):
        os.remove(found[1])  # it tells of servers as a HAProxy saw them that is long gone


def leads_somewhere(text: str) -> bool:
    """Whether a configuration of Ray's has a gateway, or the proxy that knows where to find one."""
    return re.search(r"^backend http-", text, re.MULTILINE) is not None


def copy(source: str, target: str) -> None:
    """Copy in one step: others read the target."""
    shutil.copyfile(source, target + ".new")
    os.replace(target + ".new", target)


def ask_keeper(path: str, question: bytes) -> list[str]:
    """Tell the keeper whom to watch (the kernel tells it who asks), and hear what to take over. No keeper, nothing."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_KEEPER_TIMEOUT_S)
            connection.connect(path)
            connection.sendall(question)
            with connection.makefile() as answer:
                return answer.read().split()
    except OSError:
        return []


if __name__ == "__main__":
    main(*sys.argv[1:])
