"""What each rank runs when diffusers' networks in miniature are spread; see test_spread_networks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.families.diffusers.example import example
from models.families.diffusers.family import FAMILY
from models.methods.diffusers.request import RequestMethods
from models.parallel.degrees import ParallelDegrees
from models.parallel.groups import make_groups
from models.testing.subject import Subject
from tests.support.tiny_networks import TINY, TinyNetwork

STEPS = 6


class Call(NamedTuple):
    network: str
    step: int
    num_steps: int
    branch: int
    grid: tuple[int, int, int]
    guidance_scale: float = 1.0
    row: int = 0


def errors(name: str, degrees: ParallelDegrees, attention: str, cache: str) -> tuple[list[float], float]:
    """Largest difference from one rank in each step, and this rank's share of the bytes held."""
    tiny, groups = TINY[name], make_groups(degrees)
    network = tiny.build()
    alone, spread = RequestMethods(attention, cache), RequestMethods(attention, cache, groups)
    found = []
    with torch.inference_mode():
        for step in range(STEPS):
            one = _step(alone, network, tiny, step)
            other = _step(spread, network, tiny, step)
            found.append(float((one - other).abs().max()))
    groups.close()
    held = [sum(tensor.nbytes for tensor in methods.tensors()) for methods in (alone, spread)]
    return found, held[1] / max(1, held[0])


def clip_error(name: str, degrees: ParallelDegrees, settings: dict[str, str]) -> tuple[float, int]:
    """A whole clip by a pipeline of Wan: the largest difference of its latents from one rank, and of a byte."""
    subject, groups, made = Subject(FAMILY, name), make_groups(degrees), []
    for is_spread in (False, True):
        if is_spread:
            subject.runner.spread(degrees, lambda num_tokens: groups)
        request = example(subject.variant, np.random.default_rng(0))
        point = subject.family.check_point({"num_inference_steps": 4, **settings})
        state = subject.runner.open(request, point, 0)
        while subject.runner.remaining(state):
            subject.runner.step([state])
        made.append((state.kept["latents"], subject.runner.close(state)["frames"].astype(int)))
    groups.close()
    (one, frames), (other, others) = made
    return float((one - other).abs().max()), int(np.abs(frames - others).max())


def refusal(name: str) -> str:
    """The words with which a network is not spread."""
    tiny, groups = TINY[name], make_groups(ParallelDegrees(ulysses=2))
    try:
        _step(RequestMethods("dense", "off", groups), tiny.build(), tiny, 0)
    except ValueError as error:
        return str(error)
    finally:
        groups.close()
    return ""


def _step(methods: RequestMethods, network: nn.Module, tiny: TinyNetwork, step: int) -> Tensor:
    outputs = []
    for branch in range(2):
        with methods.around(network, Call("n", step, STEPS, branch, tiny.grid)):
            outputs.append(tiny.call(network, step, branch))
    return torch.stack(outputs)
