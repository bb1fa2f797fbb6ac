"""Every Redis key name and lifetime.

Braces are Redis Cluster hash tags: all keys of one tenant live in one slot, so that one script may touch them together.

Lifetimes decide who may be evicted. Results and reservations expire; buckets do not. Under the policy ``volatile-lru``
(the embedded server's) memory pressure therefore removes old results and never a quota: under ``allkeys-lru`` a tenant
could fill the cache until its own empty bucket is evicted and comes back full. The number of buckets is the number of
tenants in the configuration.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

PREFIX: Final = "vireo:1"
"""Its number changes with any change of what the values mean."""

RESULT_TTL_S: Final = 24 * 3600
RESERVATION_TTL_S: Final = 15 * 60
"""How late a request may be settled; after that its estimate stands."""
JOB_MARK_TTL_S: Final = 48 * 3600
"""How long it is remembered that a job was settled; jobs are, the moment that they end."""
CHARGE_MARK_TTL_S: Final = 300
"""How long it is remembered that a charge was made, lest it be made again when its answer was lost."""
PROBE_TTL_S: Final = 10
QUERIES_TTL_S: Final = 3600
"""How long it is remembered what pictures a tenant sent last, after the last one."""


def result(tenant: str, digest: str) -> str:
    """An exact result. Value: see ``serving.stores.sealed``."""
    return f"{PREFIX}:{_tag(tenant)}:result:{digest}"


def bucket(tenant: str) -> str:
    """The tenant's buckets. Hash: ``joules`` and ``seconds`` left, ``at`` on the server's clock (s); ``taken_j`` and
    ``taken_s``, all that was ever taken and not given back; ``open_j`` and ``open_s``, what the open reservations hold;
    ``day_j`` and ``month_j``, spent or set aside in the day and the month of UTC that ``spent_at`` (s) is in. Never
    expires."""
    return f"{PREFIX}:{_tag(tenant)}:bucket"


def reservation(tenant: str, reservation_id: str) -> str:
    """An open reservation. Hash: ``joules`` and ``seconds``, and ``predicted_j``, of which they are the bound."""
    return f"{PREFIX}:{_tag(tenant)}:reservation:{reservation_id}"


def open_reservations(tenant: str) -> str:
    """The open reservations: id, joules, seconds and predicted joules, with spaces between. Sorted set, by when they
    expire on the server's clock (s). Never expires itself: under memory pressure it must not be forgotten that others
    are open."""
    return f"{PREFIX}:{_tag(tenant)}:open"


def job_mark(tenant: str, job_id: str) -> str:
    """There once the charge for a job was corrected."""
    return f"{PREFIX}:{_tag(tenant)}:settled:{job_id}"


def charge_mark(tenant: str, charge_id: str) -> str:
    """There once a charge was made."""
    return f"{PREFIX}:{_tag(tenant)}:charged:{charge_id}"


def tenants(owner: str) -> tuple[str, str, str]:
    """What operators change of tenants: the records, the log of changes (a stream), and what the configuration says of
    them. ``owner``: of a deployment. No tenant's tag is theirs, whose slash would be quoted."""
    tag = f"{PREFIX}:{{/tenants}}:{owner}"
    return f"{tag}:records", f"{tag}:log", f"{tag}:base"


def guard(owner: str) -> tuple[str, str]:
    """Quarantined pictures of all tenants: their ids (a sorted set, by when they expire, Unix s) and the log of what
    was done to them (a stream)."""
    tag = f"{PREFIX}:{{/guard}}:{owner}"
    return f"{tag}:index", f"{tag}:log"


def guard_entry(owner: str, entry_id: str) -> str:
    """A quarantined picture. Value: a sealed ``serving.guard.store.Entry``."""
    return f"{PREFIX}:{{/guard}}:{owner}:entry:{entry_id}"


def guard_caught(tenant: str) -> str:
    """Ids and fingerprints of pictures that a tenant was caught with, newest first. List of sealed rows."""
    return f"{PREFIX}:{_tag(tenant)}:guard:caught"


def guard_queries(tenant: str) -> str:
    """The same of the different pictures that it sent last."""
    return f"{PREFIX}:{_tag(tenant)}:guard:queries"


def probe() -> str:
    """Written by the breaker's probe."""
    return f"{PREFIX}:probe"


def _tag(tenant: str) -> str:
    return "{" + quote(tenant, safe="") + "}"
