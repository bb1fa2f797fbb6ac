"""A job in the shape of Wan2.2: a network for the early steps, another for the late ones, and room for one."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.contract import Family, Figures, JobState, Knob, LazyRef, Phase, Point, Variant, Work
from models.io import ImageIO, ImageRequest
from models.methods.experts.residency import Residency
from schedulers.kernel import Kernel
from schedulers.policies.denoising import DECODE, DenoisingWork
from schedulers.types import Decision, Finish, RunSlice, SliceFinished, SliceResult, UnitArrived
from serving.replica.job.base import JobInput
from serving.replica.job.engine import EngineOptions, JobEngine

EARLY, LATE = "early", "late"


def network(width: int, depth: int, seed: int) -> nn.Module:
    """Residual blocks of two matrices, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Blocks(width, depth).requires_grad_(False)


class Blocks(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens


class TwoExpertRunner:
    """A ``Job``: ``num_tokens`` vectors. ``early_share``: of the steps, those of the first network."""

    def __init__(self, width: int = 8, depth: int = 1, num_tokens: int = 4, early_share: float = 0.4) -> None:
        states = {EARLY: network(width, depth, 0).state_dict(), LATE: network(width, depth, 1).state_dict()}
        self.residency = Residency(network(width, depth, 2), states)
        self._shape = (1, num_tokens, width)
        self._early_share = early_share
        self.batches = 0

    def open(self, request: ImageRequest, point: Point, seed: int) -> JobState:
        noise = torch.randn(self._shape, generator=torch.Generator().manual_seed(seed))
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "tokens": noise})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        left = int(state.point["num_inference_steps"]) - state.kept["step"]
        return {"denoise": left} if left else {}

    def group_key(self, state: JobState) -> Hashable:
        return self.expert_phase(state)

    def expert_phase(self, state: JobState) -> Hashable:
        num_early = round(self._early_share * int(state.point["num_inference_steps"]))
        return EARLY if state.kept["step"] < num_early else LATE

    @torch.inference_mode()
    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        run, swap_s = self.residency.on_device(self.expert_phase(states[0]))
        made = run(torch.cat([state.kept["tokens"] for state in states]))
        self.batches += 1
        for state, tokens in zip(states, made.split(1), strict=True):
            num_steps = int(state.point["num_inference_steps"])
            moved = state.kept["tokens"] + (tokens - state.kept["tokens"]) / num_steps
            state.kept = {"step": state.kept["step"] + 1, "tokens": moved}
        return [{"swap_s": swap_s} for _ in states]

    def close(self, state: JobState) -> Mapping[str, Any]:
        return {"tokens": state.kept["tokens"]}


def _work(variant: Variant, request: ImageRequest, point: Point) -> Work:
    return Work({"slices": float(point["num_inference_steps"])}, bytes_held=1 << 20)


FAMILY = Family(
    name="two-experts",
    summary="Vectors, by two networks in turn",
    tasks=("images",),
    shape="job",
    variants=(Variant(id="two-experts-tiny", summary="", io=ImageIO(takes_prompt=True, size=(8, 8))),),
    knobs=(Knob(name="num_inference_steps", default=5, low=1, high=100, is_integer=True, summary="Steps."),),
    work=LazyRef("tests.support.two_experts:_work"),
)


def engine_of(runner: TwoExpertRunner) -> JobEngine:
    """The host's engine around a runner."""
    return JobEngine(EngineOptions(family=FAMILY, variant=FAMILY.variants[0]), lambda: runner)


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a run: ``outputs`` by job."""

    outputs: Mapping[str, Any]
    seconds: float


async def make_all(
    engine: JobEngine,
    kernel: Kernel,
    jobs: Mapping[str, JobInput],
    *,
    step_s: float = 0.1,
    clock: Callable[[], float] = time.perf_counter,
) -> Made:
    """Have jobs that all are here from the beginning made to the end, in the order of the kernel. ``step_s``: what a
    step is predicted to take."""
    outputs: dict[str, Any] = {}
    waiting: list[Decision] = []
    started_s = clock()
    for job_id, wanted in jobs.items():
        await engine.admit(job_id, wanted)
        work = DenoisingWork(steps_left=wanted.num_steps, seconds_per_step=step_s, tokens=1)
        arrived = UnitArrived(unit_id=job_id, work=work, batch_key=engine.phase(job_id), tenant=wanted.tenant)
        waiting += kernel.handle(clock(), arrived)
    while waiting:
        decision = waiting.pop(0)
        if isinstance(decision, Finish):
            engine.release(str(decision.unit_id))
        if not isinstance(decision, RunSlice):
            continue
        begun_s, ids = clock(), [str(unit_id) for unit_id in decision.unit_ids]
        if decision.stage == DECODE:
            outputs |= {job_id: await engine.decode(job_id) for job_id in ids}
        else:
            await engine.run_step(ids)
        results = tuple(
            SliceResult(unit_id=job_id, report=None if decision.stage == DECODE else engine.phase(job_id))
            for job_id in ids
        )
        elapsed_s = clock() - begun_s
        ended = SliceFinished(slice_id=decision.slice_id, results=results, elapsed_s=elapsed_s)
        waiting += kernel.handle(clock(), ended)
    return Made(outputs, clock() - started_s)
