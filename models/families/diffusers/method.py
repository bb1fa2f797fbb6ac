"""The place for what changes how a denoiser computes: sparse attention, caches between steps.

Such a method is made anew for each request (``make_method``), and is active around each call of a denoiser that runs
the request's rows. It may set attention processors, open diffusers' ``cache_context``, or count.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from models.contract import Figures, Point


class NetworkCall(NamedTuple):
    """One call of a denoiser. ``network``: its component's name. ``step`` of ``num_steps``. ``branch``: which of the
    calls of this step it is; 0 has the prompt, 1 the negative one. ``grid``: latent frames, rows and columns of
    patches; one frame for a picture. ``request_id``: names the request among those of this process."""

    network: str
    step: int
    num_steps: int
    branch: int
    grid: tuple[int, int, int]
    request_id: str


class Method(Protocol):
    """Of one request. ``is_shared``: whether its rows may be in one call with those of other requests that have the
    same point; ``around`` is then called on the first one's alone."""

    is_shared: bool

    def around(self, network: Any, call: NetworkCall) -> AbstractContextManager[Any]:
        """Active while the denoiser runs."""
        ...

    def tensors(self) -> list[Any]:
        """All that it holds, to be counted."""
        ...

    def figures(self) -> Figures:
        """What it reports of the last step."""
        ...

    def close(self, networks: Any) -> None:
        """The request has ended, or its step is taken again: forget what the networks hold for it."""
        ...


def make_method(point: Point, networks: Any) -> Method | None:
    """The method that a point asks for; None: the pipeline as it is. ``networks``: the denoisers by name."""
    return None


class Hosted:
    """A denoiser in the components of one step: itself, but that each call of it is announced."""

    def __init__(self, network: Any, name: str, method: Method, call: NetworkCall) -> None:
        self._network, self._name, self._method, self._call = network, name, method, call
        self._branch = 0

    def __getattr__(self, name: str) -> Any:
        """All else is the network's."""
        return getattr(self._network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it, with the method active."""
        call = self._call._replace(network=self._name, branch=self._branch)
        self._branch += 1
        with self._method.around(self._network, call):
            return self._network(*args, **kwargs)
