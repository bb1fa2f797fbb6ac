"""Where a request's methods meet the denoisers: sparse attention, caches between steps, ranks.

They are made anew for each request, and active around each call of a denoiser that runs the request's rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from models.contract import Point
from models.methods.diffusers.request import RequestMethods
from models.parallel.groups import SequenceGroups


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


def make_method(point: Point, groups: SequenceGroups | None) -> RequestMethods | None:
    """The methods that a point asks for, on the ranks of ``groups``; None: the pipeline as it is."""
    methods = RequestMethods(str(point.get("attention", "dense")), str(point.get("cache", "off")), groups)
    return None if methods.is_idle else methods


class Hosted:
    """A denoiser in the components of one step: itself, but that each call of it is announced."""

    def __init__(self, network: Any, name: str, method: RequestMethods, call: NetworkCall) -> None:
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
