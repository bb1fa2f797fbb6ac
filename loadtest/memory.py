"""Memory of the server's processes, read from outside: /proc for processes of this machine, /metrics for any other.

Resident memory counts pages that processes share once for each of them; anonymous memory is what a process holds for
itself alone, and the one to look at for growth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loadtest.clients.base import NobodyThere, TargetError
from loadtest.clients.http11 import BadResponse, ConnectionFailed, HttpPool, encode_request
from loadtest.tables import NONE, Table

_MIB = 1 << 20
_METRIC = "process_resident_memory_bytes"
_MAX_NAME_CHARS = 48
FIRST_STEADY = 2
"""Growth counts from the end of this repetition: the first one fills caches and pools."""


class Process(NamedTuple):
    """One process, or one source of metrics. ``anonymous_bytes`` is unknown where only metrics tell."""

    name: str
    resident_bytes: int
    anonymous_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySource:
    """Whose memory to read: processes with all that descend from them, and the /metrics pages of others."""

    pids: tuple[int, ...] = ()
    metrics_urls: tuple[str, ...] = ()
    api_key: str | None = None
    """Sent to ``metrics_urls``."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to watch."""
        return not self.pids and not self.metrics_urls

    async def read(self) -> list[Process]:
        """Read it now. Raises: TargetError: a process or a page is not there."""
        found = read_processes(self.pids)
        for url in self.metrics_urls:
            found.append(Process(url, await _read_metrics(url, self.api_key), None))
        return found


def read_processes(pids: Iterable[int], proc: Path = Path("/proc")) -> list[Process]:
    """The processes and everything that descends from them, each once. Raises: TargetError: one of ``pids`` is gone."""
    children = _children(proc)
    found: dict[int, Process] = {}
    for pid in pids:
        if (root := _read(proc / str(pid))) is None:
            raise TargetError(f"process {pid} is not there; give the id of a running process of this machine")
        found[pid] = root
        waiting = list(children.get(pid, ()))
        while waiting:
            child = waiting.pop()
            if child not in found and (process := _read(proc / str(child))) is not None:
                found[child] = process
                waiting += children.get(child, ())
    return list(found.values())


def memory_tables(repetitions: Sequence[Sequence[Process]]) -> list[Table]:
    """What was read after each repetition, and by process what came since the second; none without readings."""
    if not repetitions or not repetitions[0]:
        return []
    rows = tuple(
        (str(number), str(len(read)), _mib(_resident(read)), _mib(_anonymous(read)))
        for number, read in enumerate(repetitions, start=1)
    )
    head = ("repetition", "processes", "resident MiB", "anonymous MiB")
    tables = [Table(title="Memory of the server after each repetition", head=head, rows=rows)]
    if len(repetitions) > FIRST_STEADY:
        tables.append(_growth_table(repetitions[FIRST_STEADY - 1], repetitions[-1], len(repetitions)))
    return tables


def growth_bytes(repetitions: Sequence[Sequence[Process]]) -> int | None:
    """Growth from the second repetition to the last: of anonymous memory, of resident memory if only that is known.

    ``None`` with fewer than three repetitions.
    """
    if len(repetitions) <= FIRST_STEADY:
        return None
    before, after = repetitions[FIRST_STEADY - 1], repetitions[-1]
    anonymous = (_anonymous(before), _anonymous(after))
    if anonymous[0] is not None and anonymous[1] is not None:
        return anonymous[1] - anonymous[0]
    return _resident(after) - _resident(before)


def _growth_table(before: Sequence[Process], after: Sequence[Process], num: int) -> Table:
    names = list(dict.fromkeys(process.name for process in (*before, *after)))
    rows = [("all", *_grown(before, after))]
    rows += [(name, *_grown(_of(before, name), _of(after, name))) for name in names]
    head = ("process", f"resident after {FIRST_STEADY}", f"after {num}", "growth MiB",
            f"anonymous after {FIRST_STEADY}", f"after {num}", "growth MiB")  # fmt: skip
    return Table(title=f"Growth from repetition {FIRST_STEADY} to {num}, by process", head=head, rows=tuple(rows))


def _grown(before: Sequence[Process], after: Sequence[Process]) -> tuple[str, ...]:
    cells: list[str] = []
    for old, new in ((_resident(before), _resident(after)), (_anonymous(before), _anonymous(after))):
        growth = NONE if old is None or new is None else f"{(new - old) / _MIB:+.1f}"
        cells += [_mib(old), _mib(new), growth]
    return tuple(cells)


def _of(read: Sequence[Process], name: str) -> list[Process]:
    return [process for process in read if process.name == name]


def _resident(read: Iterable[Process]) -> int:
    return sum(process.resident_bytes for process in read)


def _anonymous(read: Iterable[Process]) -> int | None:
    values = [process.anonymous_bytes for process in read]
    return None if None in values else sum(value for value in values if value is not None)


def _mib(num_bytes: int | None) -> str:
    return NONE if num_bytes is None else f"{num_bytes / _MIB:.1f}"


def _children(proc: Path) -> Mapping[int, list[int]]:
    found: dict[int, list[int]] = {}
    for stat in proc.glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        found.setdefault(parent, []).append(int(stat.parent.name))
    return found


def _read(folder: Path) -> Process | None:
    try:
        status = (folder / "status").read_text()
        words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ").split()
    except OSError:
        return None
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    if "VmRSS" not in fields:  # a zombie
        return None
    # Folders say little about a process, and they make names long.
    name = " ".join(word.rpartition("/")[2] or word for word in words or fields["Name"])[:_MAX_NAME_CHARS]
    return Process(name, int(fields["VmRSS"][0]) * 1024, int(fields["RssAnon"][0]) * 1024)


async def _read_metrics(url: str, api_key: str | None) -> int:
    """The sum of the metric over all its labels. Raises: TargetError."""
    base, _, path = url.partition("://")[2].partition("/")
    pool = HttpPool(f"{url.partition('://')[0]}://{base}")
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    try:
        response = await pool.exchange(encode_request(pool, "GET", f"/{path}", headers=headers))
    except (ConnectionFailed, BadResponse) as error:
        raise NobodyThere(f"{url} cannot be read: {error}") from error
    finally:
        await pool.close()
    lines = response.body.decode("utf-8", "replace").splitlines()
    values = [line.split()[-1] for line in lines if line.startswith((f"{_METRIC} ", f"{_METRIC}{{"))]
    try:
        numbers = [float(value) for value in values]
    except ValueError as error:
        raise TargetError(f"{url}: {_METRIC} is not a number") from error
    if response.status != 200 or not numbers:
        raise TargetError(f"{url} answers {response.status} and tells no {_METRIC}; watch a process by its id instead")
    return int(sum(numbers))
