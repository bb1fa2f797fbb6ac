"""Where a request's methods meet the denoisers: sparse attention, caches between steps, ranks.

They are made anew for each request, and active around each call of a denoiser that runs the request's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from models.contract import Point
from models.methods.diffusers.request import RequestMethods
from models.parallel.groups import SequenceGroups


class NetworkCall(NamedTuple):
    """One call of a denoiser. ``network``: its component's name. ``step`` of ``num_steps``. ``branch``: which of the
    calls of this step it is; 0 has the prompt, 1 the negative one. ``guidance_scale``: how much the former counts; 1
    where there is no other. ``grid``: latent frames, rows and columns of
    patches; one frame for a picture. ``request_id``: names the request among those of this process. ``row``: of the
    request, where its rows are called one by one."""

    network: str
    step: int
    num_steps: int
    branch: int
    guidance_scale: float
    grid: tuple[int, int, int]
    request_id: str
    row: int = 0


def make_method(point: Point, groups: SequenceGroups | None) -> RequestMethods | None:
    """The methods that a point asks for, on the ranks of ``groups``; None: the pipeline as it is."""
    methods = RequestMethods(str(point.get("attention", "dense")), str(point.get("cache", "off")), groups)
    return None if methods.is_idle else methods


class Hosted:
    """A denoiser in the components of one step: itself, but that each call of it is announced. ``rows``: of a call.
    ``alone``: names of inputs whose first dimension is no row."""

    def __init__(
        self, network: Any, method: RequestMethods, call: NetworkCall, rows: int, alone: Sequence[str]
    ) -> None:
        self._network, self._method, self._call = network, method, call
        self._rows, self._alone = rows, alone
        self._branch = 0

    def __getattr__(self, name: str) -> Any:
        """All else is the network's."""
        return getattr(self._network, name)

    def __call__(self, **inputs: Any) -> Any:
        """Run it, with the method active; one row after the other where the method takes them so."""
        call = self._call._replace(branch=self._branch)
        self._branch += 1
        if self._rows == 1 or not self._method.takes_one_row:
            return self._run(call, inputs)
        made = [self._run(call._replace(row=row), self._of_row(inputs, row)) for row in range(self._rows)]
        return tuple(torch.cat(parts) for parts in zip(*made, strict=True))

    def _run(self, call: NetworkCall, inputs: Mapping[str, Any]) -> Any:
        with self._method.around(self._network, call):
            return self._network(**inputs)

    def _of_row(self, inputs: Mapping[str, Any], row: int) -> dict[str, Any]:
        return {
            name: value[row : row + 1] if name not in self._alone and self._has_rows(value) else value
            for name, value in inputs.items()
        }

    def _has_rows(self, value: Any) -> bool:
        is_many = isinstance(value, list) or (isinstance(value, torch.Tensor) and value.ndim > 0)
        return is_many and len(value) == self._rows
