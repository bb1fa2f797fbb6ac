"""What commands share that look into the Redis of a running system, or change it there: whoever knows its address and
its secret is its operator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from serving.client.exits import Exit
from serving.client.told import Failed

if TYPE_CHECKING:
    from serving.stores.connection import RedisConfig

PANEL = "The system on this machine"
_TIMEOUT_S = 5.0

PortOption = Annotated[int | None, typer.Option(help="HTTP port of the system; default 8000.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The configuration that it was started with, if that names its Redis or its secret.",
        exists=True,
        dir_okay=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


class Store(Protocol):
    """What is asked."""

    async def stop(self) -> None:
        """Close its connection."""
        ...


S = TypeVar("S", bound=Store)
T = TypeVar("T")


def asked(
    port: int | None,
    config: Path | None,
    make: Callable[[RedisConfig, bytes], S],
    ask: Callable[[S], Awaitable[T]],
) -> T:
    """What a store of the system says. ``make``: it, from where Redis is and the secret.

    Raises: Failed: nothing runs there, or its Redis is away. ConfigError.
    """
    import asyncio

    from serving.errors import StoreUnavailable
    from serving.stores.connection import RedisConfig

    url, secret = _store(port, config)

    async def answered() -> T:
        store = make(RedisConfig(url=url, timeout_s=_TIMEOUT_S, max_connections=1), secret.encode())
        try:
            return await ask(store)
        finally:
            await store.stop()

    try:
        return asyncio.run(answered())
    except StoreUnavailable as error:
        from serving.config import mask_url

        raise Failed(f"{error.message} ({mask_url(url)}); is the system up?", Exit.UNREACHABLE) from None


def _store(port: int | None, config: Path | None) -> tuple[str, str]:
    """URL and secret of the system on this machine, or of the configuration that says both."""
    from serving import config as configuration
    from serving.cli.run_state import found

    settings = configuration.load(config, () if port is None else (f"http.port={port}",))
    run_dir, state = found(settings.http.port, configuration.run_dir_of(settings))
    if state is None and settings.redis.url == "embedded":
        raise Failed(f"nothing is running on port {settings.http.port}; name another with --port", Exit.UNREACHABLE)
    return configuration.store_of(settings, run_dir)


def actor() -> str:
    """Who runs this command, for logs of changes."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user that this machine has no name for, as in a container
        import os

        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def shown_time(at_s: float) -> str:
    """Of Unix time, in UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
