"""Who is asking: API key to tenant.

Keys are known by their SHA-256 hashes, and looked up by these. How long that takes may say something about hashes, and
helps nobody: who asks cannot choose the hash of what he sends, and a hash does not lead to its key, which is drawn at
random. They may change at any time (``Authenticator.use``). Without keys everybody is the tenant ``local``,
and only callers on this machine are served; where there were keys once, nobody is.

A browser on this machine is one of them, whoever wrote the page that it shows. So without keys a request must not come
from a page of another origin, and must call the server by a name of this machine: a page whose own name was made to
lead here (DNS rebinding) would be of the same origin.

A caller's address is what the transport says. Behind a proxy on this machine it is the proxy's: a server without keys
must therefore have its proxy listen on loopback only.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from serving.errors import ConfigError, Forbidden, Unauthenticated

LOCAL_TENANT = "local"
MAX_KEY_CHARS = 512
_HASH = re.compile(r"[0-9a-f]{64}")
_GRPC_IP = re.compile(r"ipv[46]:(?:\[(?P<bracketed>[^\]]+)\]|(?P<plain>[^:\[\]]+)):\d+")


class Credentials(NamedTuple):
    """Who may come in, and what more some may. ``keys``: tenant, SHA-256 in hexadecimal, Unix time of the end.
    ``needs_key``: also where there are none."""

    keys: tuple[tuple[str, str, float], ...]
    needs_key: bool = False
    logprobs: frozenset[str] = frozenset()
    image_logprobs: frozenset[str] = frozenset()
    admins: frozenset[str] = frozenset()


class LogprobRights(NamedTuple):
    """Whether a tenant may see and bias probabilities of tokens, and whether it may see those of answers about images,
    which is what an attack on pictures learns from."""

    is_open: bool = False
    with_images: bool = False


class Authenticator:
    """Maps credentials to tenants. ``keys`` maps each tenant to the SHA-256 of its key, or of each of its keys, in
    hexadecimal: two at a time let a tenant change its key without an outage. ``logprobs_tenants`` may see and bias
    probabilities of tokens, those that are also among ``image_logprobs_tenants`` see them of answers about images, and
    ``admins`` read what is counted of each tenant; nobody else may. ``origins``: whose
    pages may call a server without keys, besides those of this machine; "*" is any.

    Raises:
        ConfigError: a hash is malformed, two tenants share one, or there are no keys and nobody would be let in.
    """

    def __init__(
        self,
        keys: Mapping[str, str | Sequence[str]],
        allow_anonymous_loopback: bool,
        logprobs_tenants: Collection[str] = (),
        image_logprobs_tenants: Collection[str] = (),
        admins: Collection[str] = (),
        origins: Collection[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        hashes = [(tenant, digest.lower()) for tenant, digests in keys.items() for digest in _several(digests)]
        for tenant, digest in hashes:
            if not _HASH.fullmatch(digest):
                raise ConfigError(f"key of tenant {tenant!r} is not a SHA-256 in hexadecimal (64 characters); hash it")
        if len({digest for _tenant, digest in hashes}) != len(hashes):
            raise ConfigError("two tenants have the same API key; give each its own")
        if not hashes and not allow_anonymous_loopback:
            raise ConfigError("no API keys are configured and anonymous callers are refused; configure a key")
        self._allow_anonymous_loopback = allow_anonymous_loopback
        self._origins = frozenset(origins)
        self._clock = clock
        kept = tuple((tenant, digest, math.inf) for tenant, digest in hashes)
        logprobs, images = frozenset(logprobs_tenants), frozenset(image_logprobs_tenants)
        self.use(Credentials(kept, bool(kept), logprobs, images, frozenset(admins)))

    def use(self, credentials: Credentials) -> None:
        """From now on these count and no others, in one step."""
        # Of a hash that is there twice, as in the configuration and made here, the one that is open longest counts.
        longest_last = sorted(credentials.keys, key=lambda key: key[2])
        self._owners = {digest: (tenant, until_s) for tenant, digest, until_s in longest_last}
        self._credentials = credentials

    @property
    def _is_open(self) -> bool:
        """Whether there never were keys: whoever is on this machine is served."""
        return not (self._credentials.keys or self._credentials.needs_key) and self._allow_anonymous_loopback

    def logprob_rights(self, tenant: str) -> LogprobRights:
        """What a tenant may see of probabilities of tokens."""
        known = self._credentials
        return LogprobRights(tenant in known.logprobs, tenant in known.image_logprobs)

    def is_admin(self, tenant: str) -> bool:
        """Whether a tenant may read what is counted of each. Without keys whoever is served may: nobody else is."""
        return (self._is_open and tenant == LOCAL_TENANT) or tenant in self._credentials.admins

    def check_browser(self, host: str | None, origin: str | None) -> None:
        """Pass a request that no page of another site has made. Where there are keys, a page needs one like anybody.

        ``host`` and ``origin``: the headers, None if they were not sent.

        Raises: Forbidden: there are no keys, and the origin is another one or the host is no name of this machine.
        """
        if not self._is_open:
            return
        if origin is not None and not self._origins & {origin, "*"} and not _is_on_this_machine(origin):
            raise Forbidden(
                "this server has no API keys and takes no requests of pages of other origins; configure keys, or allow "
                "the origin in http.cors_origins",
                param="origin",
            )
        if host is not None and not _is_on_this_machine(f"http://{host}"):
            raise Forbidden(
                "this server has no API keys and is called localhost or by a loopback address; call it by that, or "
                "configure keys",
                param="host",
            )

    def authenticate(self, authorization: str | None, x_api_key: str | None, peer_host: str | None) -> str:
        """Return the tenant of a caller.

        ``peer_host`` is an IP address, or a gRPC peer such as ``ipv4:127.0.0.1:1234``.

        Raises:
            Unauthenticated: keys are configured and this is none of them.
            Forbidden: no keys are configured and the caller is not known to be on this machine.
        """
        if self._is_open:
            if not is_loopback(peer_host):
                raise Forbidden(
                    "this server has no API keys and serves its own machine only; configure keys to open it"
                )
            return LOCAL_TENANT
        presented = hashlib.sha256(_presented_key(authorization, x_api_key).encode()).hexdigest()
        tenant, until_s = self._owners.get(presented, ("", -math.inf))
        if self._clock() >= until_s:
            raise Unauthenticated("API key is unknown; check it, or ask the operator for one", param="authorization")
        return tenant


def missing_key() -> Unauthenticated:
    """Return the error of a call without a key where there are keys."""
    return Unauthenticated(
        "API key is missing; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'", param="authorization"
    )


def key_sent_twice(name: str) -> Unauthenticated:
    """Return the error of a call with two of a header that carries a key: nobody else may read another one than we."""
    return Unauthenticated(f"{name} is sent more than once; send it once", param=name)


def _several(digests: str | Sequence[str]) -> Sequence[str]:
    return (digests,) if isinstance(digests, str) else digests


def _presented_key(authorization: str | None, x_api_key: str | None) -> str:
    bearer = None
    if authorization is not None:
        scheme, _, bearer = authorization.partition(" ")
        bearer = bearer.strip(" ")
        if scheme.lower() != "bearer" or not bearer:
            raise Unauthenticated(
                "authorization is not of the form 'Bearer KEY'; send that, or the header x-api-key",
                param="authorization",
            )
    if bearer is not None and x_api_key is not None and bearer != x_api_key:
        raise Unauthenticated("authorization and x-api-key carry different keys; send one of them", param="x-api-key")
    key = bearer if bearer is not None else x_api_key
    if not key:
        raise missing_key()
    if len(key) > MAX_KEY_CHARS or not key.isascii():
        raise Unauthenticated(
            f"API key is not ASCII or longer than {MAX_KEY_CHARS} characters; check it", param="authorization"
        )
    return key


def _is_on_this_machine(url: str) -> bool:
    """Whether a URL's host is a loopback address, or a name that browsers and resolvers keep for one (RFC 6761)."""
    try:
        name = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)


def is_loopback(peer: str | None) -> bool:
    """Whether a peer is certainly on this machine. Whatever cannot be read is not."""
    if not peer:
        return False
    if peer.startswith(("unix:", "unix-abstract:")):
        return True
    try:
        address = ipaddress.ip_address(_ip_of(peer))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _ip_of(peer: str) -> str:
    """Return the address inside a gRPC peer string, or the text itself."""
    match = _GRPC_IP.fullmatch(peer.replace("%5B", "[").replace("%5D", "]"))
    return (match["bracketed"] or match["plain"]) if match else peer
