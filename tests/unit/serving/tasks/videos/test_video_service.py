"""The gateway's half of video jobs over an index in memory: admission, ownership, quotas, files, watching."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgspec
import pytest

from models.io import ClipRequest
from schedulers.admission import Cost
from schedulers.bending import limits_of
from serving.bending import Bending
from serving.delivery.job.base import JobModel, report_of
from serving.delivery.job.service import Jobs, JobServiceConfig, asked_by
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.domain import Budget, Degradation, Priority, Surface, within_priority
from serving.errors import (
    BudgetInfeasible,
    ClientError,
    DeadlineUnreachable,
    IdempotencyKeyReused,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    QuotaExceeded,
    StoreUnavailable,
    UnknownModel,
    UnknownVideo,
    UnsupportedVideo,
)
from serving.stores.jobs.base import (
    Artefact,
    JobError,
    JobPage,
    JobQueue,
    JobRecord,
    JobStatus,
    folder,
    preview_key,
)
from serving.tasks.videos.points import VideoPoints
from serving.tasks.videos.reply import settings_of, video_to_json
from serving.tasks.videos.resolve import ClipPlanner
from serving.tasks.videos.rules import VIDEOS, VideoRequest
from serving.tasks.videos.schemas import VideoBody
from serving.telemetry.events import BendingChanged, Event, JobAdmitted, PointsLowered
from tests.support.clip_limits import clip_limits, clip_point
from tests.support.fake_videos import make_video_card
from tests.support.memory_results import MemoryResults
from tests.support.waiting import turns, until

NOW_S = 1_800_000_000.0
LIMITS = clip_limits(max_prompt_chars=100)


FULL = clip_point(50, 0.9, sampler="euler_ancestral")
SPARSE = clip_point(20, 0.8, sampler="euler_ancestral", attention="ras:0.5")
QUICK = clip_point(4, 0.6, sampler="consistency", guidance_scale=1.0)
"""6, 3 and 1.4 seconds; 36, 18 and 8.4 joules, of 29 frames."""


def served(replicas: int = 1) -> JobModel:
    card = make_video_card()
    planner = ClipPlanner(card=card, limits=LIMITS, points=VideoPoints(points=(FULL, SPARSE, QUICK), limits=LIMITS))
    return JobModel(card=card, plan=planner, replicas=replicas)


@dataclass
class MemoryIndex:
    """Jobs of a gateway's point of view. ``is_away``: Redis cannot be reached. ``waiting_s``: of Ada's own jobs."""

    jobs: dict[str, JobRecord] = field(default_factory=dict)
    is_away: bool = False
    num_refused: int = 0
    waiting_s: float = 0.0
    flood_s: float = 0.0
    num_creates: int = 0
    before_create: Callable[[], None] = lambda: None

    def _check(self) -> None:
        if self.is_away:
            self.num_refused += 1
            raise StoreUnavailable("ConnectionError at redis://:secret@10.0.0.1")

    async def create(self, job: JobRecord, *, max_queued: int) -> None:
        self._check()
        self.num_creates += 1
        self.before_create()
        if job.id in self.jobs:
            return
        if len(self.jobs) >= max_queued:
            raise QueueFull(f"{max_queued} jobs wait")
        self.jobs[job.id] = job

    async def get(self, owner: str, job_id: str) -> JobRecord | None:
        self._check()
        job = self.jobs.get(job_id)
        return job if job is not None and job.owner == owner else None

    async def list_jobs(
        self, owner: str, task: str, *, after: str | None, limit: int, newest_first: bool
    ) -> JobPage | None:
        self._check()
        mine = [job for job in self.jobs.values() if (job.owner, job.task) == (owner, task)]
        if after is not None and after not in [job.id for job in mine]:
            return None
        return JobPage(jobs=tuple(mine[:limit]), has_more=len(mine) > limit)

    async def cancel(self, owner: str, job_id: str) -> JobRecord | None:
        job = await self.get(owner, job_id)
        if job is not None and not job.status.is_final:
            error = JobError(code="cancelled", message="the job was cancelled")
            self.jobs[job_id] = replace(job, status=JobStatus.FAILED, error=error)
        return self.jobs.get(job_id) if job is not None else None

    async def delete(self, owner: str, job_id: str) -> JobRecord | None:
        job = await self.get(owner, job_id)
        if job is None or not job.status.is_final:
            return None
        return self.jobs.pop(job_id)

    async def queue(self, model: str) -> JobQueue:
        self._check()
        return JobQueue(owners_s={"ada": self.waiting_s, "flood": self.flood_s})


@dataclass
class MemoryFiles:
    files: dict[str, bytes] = field(default_factory=dict)
    is_away: bool = False

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        if self.is_away:
            raise StoreUnavailable("disk at /srv/secret")
        if key not in self.files:
            raise FileNotFoundError(key)
        return self.files[key][start:end]

    async def put(self, key: str, data: bytes) -> Artefact:
        if self.is_away:
            raise StoreUnavailable("disk at /srv/secret")
        self.files[key] = data
        return Artefact(key=key, media_type="", num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    async def delete(self, key: str) -> None:
        if self.is_away:
            raise StoreUnavailable("disk at /srv/secret")
        for name in [name for name in self.files if name.startswith(f"{key}/")]:
            del self.files[name]


@dataclass
class Gateway:
    index: MemoryIndex = field(default_factory=MemoryIndex)
    files: MemoryFiles = field(default_factory=MemoryFiles)
    quotas: MemoryResults = field(default_factory=MemoryResults)
    now_s: float = NOW_S
    max_queued: int = 100
    served: JobModel = field(default_factory=served)
    models: tuple[str, ...] = ()
    admitted_jobs: list[tuple[str, str, str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = JobServiceConfig(
            max_queued=self.max_queued, secret=b"s", poll_s=0.001, patience_s=30.0, max_watchers=2
        )
        index: Any = self.index
        results: Any = self.quotas
        limits = PipelineLimits(max_in_flight=8, default_deadline_s=30.0)
        self.pipeline = Pipeline(results, limits, tell=self.hear, models=self.models)
        self.service = Jobs(
            VIDEOS, {"fake-video": self.served}, index, self.files, self.pipeline, config, lambda: self.now_s
        )

    def hear(self, event: Event) -> None:
        assert isinstance(event, JobAdmitted)
        self.admitted_jobs.append((event.model, event.tenant, event.point, event.predicted_s))

    async def create(self, **fields: Any) -> JobRecord:
        return await self.service.create(asked(**fields))


def asked(**fields: Any) -> VideoRequest:
    values: dict[str, Any] = {
        "request_id": "r", "surface": Surface.HTTP_VIDEO, "tenant": "ada", "model": "fake-video", "prompt": "a ball",
        **fields,
    }  # fmt: skip
    body = {name: values.pop(name) for name in VideoBody.model_fields if name in values and name != "model"}
    return VideoRequest(**values, asked=VideoBody.model_construct(**body))


# -- what is chosen --------------------------------------------------------------------------------------------------


async def test_open_request_gets_the_best_point_and_the_defaults_of_the_model() -> None:
    gateway = Gateway()
    job = await gateway.create()
    settings = settings_of(job)
    assert (settings["width"], settings["height"], settings["num_frames"], settings["fps"]) == (64, 64, 29, 8)
    assert (settings["num_inference_steps"], settings["sampler"], settings["attention"]) == (
        50,
        "euler_ancestral",
        "dense",
    )
    assert (settings["variant"], settings["guidance_scale"]) == ("teacher", 4.0)
    assert (job.operating_point, job.predicted_s, job.predicted_j) == (FULL.name, 6.0, 36.0)
    assert (job.owner, job.status, job.created_at_s, job.deadline_at_s) == ("ada", JobStatus.QUEUED, NOW_S, None)
    assert gateway.index.jobs == {job.id: job}
    assert gateway.admitted_jobs == [("fake-video", "ada", FULL.name, 6.0)]


async def test_job_may_hold_what_its_family_counts_for_its_clip_and_point() -> None:
    long, short = [await Gateway().create(num_frames=frames) for frames in (93, 29)]
    for job in (long, short):
        clip = msgspec.json.decode(job.payload, type=ClipRequest)
        assert job.held_bytes == LIMITS.work(clip, job.point).bytes_held
    assert long.held_bytes > short.held_bytes > 0


async def test_what_the_caller_fixes_is_what_is_made() -> None:
    job = await Gateway().create(
        negative_prompt="blur", width=64, height=64, num_frames=93, fps=24, num_inference_steps=30, guidance_scale=2.0,
        seed=7, sampler="ddim", attention="tile:2:22", output_format="gif", user="me",
        budget=Budget(priority=Priority.HIGH),
    )  # fmt: skip
    settings = settings_of(job)
    assert (settings["negative_prompt"], settings["num_frames"], settings["fps"], settings["seed"]) == (
        "blur",
        93,
        24,
        7,
    )
    assert (settings["num_inference_steps"], settings["guidance_scale"], settings["sampler"]) == (30, 2.0, "ddim")
    assert (settings["attention"], settings["output_format"]) == ("tile:2:22", "gif")
    assert (job.priority, job.shown["user"], video_to_json(job, "")["seconds"]) == ("high", "me", "3.88")


@pytest.mark.parametrize(
    ("budget", "name", "degraded"),
    [
        (Budget(latency_ms=100_000), FULL.name, []),
        (Budget(latency_ms=4_000), SPARSE.name, ["latency"]),
        (Budget(energy_j=10), QUICK.name, ["energy"]),
        (Budget(latency_ms=4_000, quality_floor=0.7), SPARSE.name, ["latency"]),
    ],
)
async def test_budget_picks_the_best_point_that_fits_and_says_what_it_cost(
    budget: Budget, name: str, degraded: list[str]
) -> None:
    job = await Gateway().create(budget=budget)
    assert (job.operating_point, job.report.get("degraded", [])) == (name, degraded)
    expected = None if budget.latency_ms is None else NOW_S + budget.latency_ms / 1e3
    assert job.deadline_at_s == expected


async def test_long_queue_bends_quality_and_the_job_says_so() -> None:
    gateway = Gateway()
    told: list[Event] = []
    gateway.pipeline.bending = Bending({"fake-video": limits_of(10.0)}, clock=lambda: gateway.now_s, tell=told.append)
    seen = []
    for waiting_s, wait_s in ((5.0, 0.0), (50.0, 10.0), (50.0, 10.0), (50.0, 10.0), (0.0, 1000.0)):
        gateway.now_s += wait_s
        gateway.index.waiting_s = waiting_s
        seen.append((await gateway.create()).operating_point)
    assert seen == [FULL.name, SPARSE.name, SPARSE.name, QUICK.name, FULL.name]
    job = next(job for job in gateway.index.jobs.values() if job.operating_point == QUICK.name)
    made = report_of(job).degradation
    assert (job.report["degraded"], video_to_json(job, "")["vireo"]["degradation"]) == (["load"], made)
    assert made == Degradation(
        from_point=FULL.name,
        to_point=QUICK.name,
        reasons=("load",),
        quality_before=0.9,
        quality_after=0.6,
        energy_j_before=36.0,
        energy_j_after=pytest.approx(8.4),  # type: ignore[arg-type]
    )
    assert [event.level for event in told if isinstance(event, BendingChanged)] == [1, 2, 3, 0]
    lowered = [event for event in told if isinstance(event, PointsLowered)]
    assert lowered == [PointsLowered("fake-video", "ada", ("load",))] * 3
    gateway.pipeline.bending.stop()


async def test_consistency_runs_on_the_students_weights() -> None:
    job = await Gateway().create(sampler="consistency")
    assert (job.shown["variant"], job.num_steps) == ("student", 4)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [(4.0, None, 29), (3.625, None, 29), (8.0, None, 93), (1.0, 24, 29), (4.0, 24, 93)]
)
async def test_seconds_make_the_nearest_length(seconds: float, fps: int | None, frames: int) -> None:
    assert settings_of(await Gateway().create(seconds=seconds, fps=fps))["num_frames"] == frames


async def test_frames_go_before_seconds_that_agree() -> None:
    assert settings_of(await Gateway().create(seconds=4.0, num_frames=29))["num_frames"] == 29


async def test_seeds_differ_unless_they_are_asked_for() -> None:
    gateway = Gateway()
    seeds = {(await gateway.create()).seed for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert (await gateway.create(seed=0)).seed == 0


# -- what is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], type[ClientError], str, str]] = [
    ("size", {"width": 128, "height": 64}, UnsupportedVideo, "size", "64x64"),
    ("frames", {"num_frames": 30}, UnsupportedVideo, "num_frames", "29, 93"),
    ("seconds_long", {"seconds": 60.0}, UnsupportedVideo, "seconds", "3.625, 11.625"),
    ("seconds_short", {"seconds": 0.5}, UnsupportedVideo, "seconds", "3.625"),
    ("contradiction", {"seconds": 12.0, "num_frames": 29}, UnsupportedVideo, "seconds", "send one"),
    ("frames_and_seconds", {"seconds": 4.0, "num_frames": 31}, UnsupportedVideo, "num_frames", "29, 93"),
    ("fps", {"fps": 240}, UnsupportedVideo, "fps", "1 to 60"),
    ("steps", {"num_inference_steps": 500}, UnsupportedVideo, "num_inference_steps", "100"),
    ("steps_of_sampler", {"sampler": "consistency", "num_inference_steps": 6}, UnsupportedVideo,
     "num_inference_steps", "a multiple of 4"),
    ("guidance_nan", {"guidance_scale": float("nan")}, UnsupportedVideo, "guidance_scale", "20"),
    ("guidance_high", {"guidance_scale": 50.0}, UnsupportedVideo, "guidance_scale", "20"),
    ("guidance_low", {"guidance_scale": 0.5}, UnsupportedVideo, "guidance_scale", "1 to"),
    ("sampler", {"sampler": "heun"}, UnsupportedVideo, "sampler", "ddim"),
    ("attention", {"attention": "sage"}, UnsupportedVideo, "attention", "dense"),
    ("tiles", {"attention": "tile:2:9"}, UnsupportedVideo, "attention", "tile:2:6"),
    ("sparsity", {"attention": "adaspa:1.5"}, UnsupportedVideo, "attention", "between 0 and 1"),
    ("prompt", {"prompt": "x" * 101}, PromptTooLong, "prompt", "100"),
    ("negative", {"negative_prompt": "x" * 101}, PromptTooLong, "negative_prompt", "100"),
    ("latency", {"budget": Budget(latency_ms=500)}, BudgetInfeasible, "vireo.latency_ms", QUICK.name),
    ("energy", {"budget": Budget(energy_j=1)}, BudgetInfeasible, "vireo.energy_j", QUICK.name),
    ("quality", {"budget": Budget(quality_floor=0.95)}, BudgetInfeasible, "vireo.quality_floor", FULL.name),
    ("model", {"model": "sora-2"}, UnknownModel, "model", "fake-video"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "error", "param", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
async def test_what_the_model_cannot_do_is_refused_before_anything_is_spent(
    fields: dict[str, Any], error: type[ClientError], param: str, says: str
) -> None:
    gateway = Gateway()
    with pytest.raises(error, match=says) as caught:
        await gateway.create(**fields)
    assert caught.value.param == param
    assert (gateway.index.num_creates, gateway.quotas.reserved, gateway.admitted_jobs) == (0, [], [])


async def test_queue_counts_against_the_latency_and_is_told_apart_from_a_budget_too_small() -> None:
    gateway = Gateway(served=served(replicas=2))
    gateway.index.waiting_s = 8.0
    budget = Budget(latency_ms=8_000)
    assert (await gateway.create(budget=budget)).operating_point == SPARSE.name  # four of eight seconds are left
    gateway.index.waiting_s = 15.0
    with pytest.raises(DeadlineUnreachable, match=r"7\.5 s") as caught:
        await gateway.create(budget=budget)
    assert caught.value.retry_after_s == pytest.approx(0.9)
    with pytest.raises(BudgetInfeasible):
        await gateway.create(budget=Budget(latency_ms=500))
    assert (await gateway.create()).operating_point == FULL.name  # no deadline, no matter


async def test_job_waits_for_as_much_of_a_flood_as_it_takes_itself() -> None:
    gateway = Gateway()
    gateway.index.flood_s = 1000.0
    job = await gateway.create(budget=Budget(latency_ms=20_000))
    assert job.operating_point == FULL.name, "6 s of its own and 6 s of the flood"
    assert (await gateway.create(budget=Budget(latency_ms=8_000))).operating_point == QUICK.name
    with pytest.raises(DeadlineUnreachable, match=r"1000"):
        await gateway.create(tenant="flood", budget=Budget(latency_ms=20_000))


async def test_job_says_what_other_models_served_its_tenant() -> None:
    gateway = Gateway(models=("fake-video", "chat"))
    gateway.pipeline.served("ada", "chat", 8.0)
    assert (await gateway.create()).elsewhere_j == pytest.approx(8.0, rel=0.01)
    assert (await gateway.create()).elsewhere_j == 0.0


# -- bounds, quota, outage -------------------------------------------------------------------------------------------


async def test_quota_is_charged_with_the_prediction() -> None:
    gateway = Gateway()
    await gateway.create()
    assert gateway.quotas.reserved == [("ada", Cost(36.0, 6.0))]
    assert gateway.quotas.settled == [Cost(36.0, 6.0)]
    gateway.quotas.burst_s = 1.0
    with pytest.raises(QuotaExceeded):
        await gateway.create()
    assert len(gateway.index.jobs) == 1


async def test_full_queue_charges_nothing() -> None:
    gateway = Gateway(max_queued=1)
    await gateway.create()
    with pytest.raises(QueueFull):
        await gateway.create()
    assert gateway.quotas.settled == [Cost(36.0, 6.0), Cost(0.0, 0.0)]


@pytest.mark.parametrize("fields", [{}, {"idempotency_key": "k"}, {"budget": Budget(latency_ms=60_000)}])
async def test_without_the_index_there_is_no_id_no_charge_and_nothing_internal(fields: dict[str, Any]) -> None:
    gateway = Gateway()
    gateway.index.is_away = True
    with pytest.raises(StoreUnavailable) as caught:
        await gateway.create(**fields)
    assert "secret" not in caught.value.message
    assert caught.value.retry_after_s
    assert all(charge == Cost(0.0, 0.0) for charge in gateway.quotas.settled)


async def test_every_look_at_a_job_fails_in_the_same_words_without_the_index() -> None:
    gateway = Gateway()
    gateway.index.is_away, service = True, gateway.service
    calls: list[Awaitable[Any]] = [
        service.get("ada", "x"),
        service.page("ada", after=None, limit=5, newest_first=True),
        service.cancel("ada", "x"),
        service.delete("ada", "x"),
        anext(service.watch("ada", "x")),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="jobs cannot be reached"):
            await call


# -- a picture that goes in ------------------------------------------------------------------------------------------


async def test_picture_is_a_file_of_the_job_and_not_in_its_record() -> None:
    gateway = Gateway()
    job = await gateway.service.create(replace(asked(), picture=b"png" * 1000))
    assert b"png" not in job.payload
    assert len(job.payload) < 1000
    assert gateway.files.files[job.inputs["picture"].key] == b"png" * 1000
    gateway.index.jobs[job.id] = replace(job, status=JobStatus.COMPLETED)
    await gateway.service.delete("ada", job.id)
    assert not gateway.files.files


async def test_picture_of_a_job_that_is_not_taken_is_not_kept() -> None:
    gateway = Gateway(max_queued=0)
    with pytest.raises(QueueFull):
        await gateway.service.create(replace(asked(), picture=b"png"))
    assert not gateway.files.files
    gateway.files.is_away = True
    with pytest.raises(StoreUnavailable) as caught:
        await gateway.service.create(replace(asked(), picture=b"png"))
    assert "secret" not in caught.value.message
    assert not gateway.index.jobs
    assert gateway.quotas.settled == [Cost(0.0, 0.0)] * 2


async def test_request_is_prepared_once_and_not_again_for_its_key() -> None:
    prepared: list[str] = []

    async def prepare(request: VideoRequest) -> VideoRequest:
        prepared.append(request.request_id)
        return replace(request, picture=b"png", size=(64, 64))

    gateway = Gateway(served=replace(served(), prepare=prepare))
    first = await gateway.create(idempotency_key="k")
    assert (await gateway.create(idempotency_key="k", request_id="again")).inputs == first.inputs
    assert prepared == ["r"]


# -- idempotency -----------------------------------------------------------------------------------------------------


async def test_same_key_is_the_same_job_and_is_charged_once() -> None:
    gateway, other = Gateway(), Gateway()
    first = await gateway.create(idempotency_key="k")
    again = await gateway.create(idempotency_key="k")
    assert first == again
    assert len(gateway.quotas.settled) == 1
    elsewhere = await other.create(idempotency_key="k")
    assert (elsewhere.id, elsewhere.seed) == (first.id, first.seed)


async def test_keys_of_different_tenants_and_requests_without_one_are_different_jobs() -> None:
    gateway = Gateway()
    jobs = [await gateway.create(tenant=tenant, idempotency_key="k") for tenant in ("ada", "bob")]
    jobs += [await gateway.create() for _ in range(2)]
    assert len({job.id for job in jobs}) == 4
    assert all(job.id.startswith("video_") and len(job.id) == 38 for job in jobs)


_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a cube"}, "prompt"),
    ({"seed": 3}, "seed"),
    ({"seed": None}, "seed"),
    ({"num_frames": 93}, "num_frames"),
    ({"seconds": 8.0}, "seconds"),
    ({"user": "x"}, "user"),
    ({"output_format": "gif"}, "output_format"),
    ({"width": 64, "height": 64}, "height, width"),
    ({"budget": Budget(latency_ms=60_000)}, "vireo.latency_ms"),
    ({"budget": Budget(energy_j=100.0)}, "vireo.energy_j"),
    ({"budget": Budget(quality_floor=0.5)}, "vireo.quality_floor"),
    ({"budget": Budget(priority=Priority.HIGH)}, "vireo.priority"),
]


@pytest.mark.parametrize(("change", "named"), _CHANGES)
async def test_key_that_was_used_for_another_request_is_refused(change: dict[str, Any], named: str) -> None:
    """Whatever a request may say: one for 8 seconds was given the clip of 4 that came first."""
    gateway = Gateway()
    await gateway.create(idempotency_key="k", seed=1)
    with pytest.raises(IdempotencyKeyReused, match=f"different: {named}. ") as caught:
        await gateway.create(**({"idempotency_key": "k", "seed": 1} | change))
    assert caught.value.param == "idempotency-key"
    assert len(gateway.index.jobs) == len(gateway.quotas.settled) == 1


async def test_key_stands_for_a_request_however_it_came() -> None:
    gateway = Gateway()
    first = await gateway.create(idempotency_key="k", seconds=4.0, guidance_scale=4.0)
    again = await gateway.create(
        idempotency_key="k", seconds=4.0, guidance_scale=4, request_id="another", surface=Surface.GRPC_VIDEO
    )
    assert again == first


def test_every_field_of_a_request_counts_but_those_that_say_how_it_came() -> None:
    """One that is added later, too."""
    every: dict[str, Any] = {
        name: "x" for name in VideoBody.model_fields if name not in ("model", "vireo", "extra_params")
    }
    budget = Budget(latency_ms=1.0, energy_j=1.0, quality_floor=1.0, settings={"steps": 1}, degraded=("x",))
    digests = asked_by(asked(**every, budget=budget))
    assert digests.keys() == every.keys() | {"model"} | {f"vireo.{one.name}" for one in fields(Budget)}


async def test_gateway_that_loses_the_race_answers_with_the_job_of_the_one_that_won() -> None:
    gateway, rival = Gateway(), Gateway(now_s=NOW_S - 0.001)
    won = replace(await rival.create(idempotency_key="k"), step=3)

    def win() -> None:
        gateway.index.jobs[won.id] = won

    gateway.index.before_create = win
    assert await gateway.create(idempotency_key="k") == won
    assert (gateway.quotas.settled, gateway.admitted_jobs) == ([Cost(0.0, 0.0)], [])


# -- jobs afterwards -------------------------------------------------------------------------------------------------


async def test_without_a_model_nothing_is_made_and_nothing_is_there() -> None:
    gateway = Gateway()
    index: Any = gateway.index
    config = JobServiceConfig(max_queued=1, secret=b"s")
    gateway.service = Jobs(VIDEOS, {}, index, gateway.files, gateway.pipeline, config)
    assert gateway.service.job_models == {}
    with pytest.raises(UnknownModel, match="makes no clips here; models that do: none"):
        await gateway.create()
    assert (await gateway.service.page("ada", after=None, limit=5, newest_first=True)).jobs == ()
    with pytest.raises(UnknownVideo):
        await gateway.service.get("ada", "video_1")


async def test_job_of_another_tenant_is_unknown_in_the_same_words() -> None:
    gateway = Gateway()
    job = await gateway.create()
    for call in (gateway.service.get, gateway.service.cancel, gateway.service.delete):
        with pytest.raises(UnknownVideo) as theirs:
            await call("bob", job.id)
        with pytest.raises(UnknownVideo) as nobodys:
            await call("bob", "video_x")
        assert theirs.value.message.replace(job.id, "") == nobodys.value.message.replace("video_x", "")
    assert gateway.index.jobs == {job.id: job}
    with pytest.raises(InvalidRequest, match="after"):
        await gateway.service.page("bob", after=job.id, limit=5, newest_first=True)


async def test_cancelled_job_that_nobody_began_gets_its_charge_back() -> None:
    gateway = Gateway()
    job = await gateway.create()
    for _ in range(2):
        await gateway.service.cancel("ada", job.id)
    assert gateway.quotas.settled == [Cost(36.0, 6.0)]
    assert gateway.quotas.settled_jobs == [("ada", job.id, Cost(36.0, 6.0), Cost(0.0, 0.0))]


async def test_charge_of_a_job_that_runs_is_left_to_the_replica() -> None:
    gateway = Gateway()
    job = await gateway.create()
    gateway.index.jobs[job.id] = replace(job, status=JobStatus.IN_PROGRESS, attempts=1)
    await gateway.service.cancel("ada", job.id)
    assert gateway.quotas.settled_jobs == []


@pytest.mark.parametrize("attempts", [0, 1])  # 0: a replica that stopped in order gave it back
async def test_cancelled_job_that_waits_again_pays_for_the_steps_it_has_kept(attempts: int) -> None:
    gateway = Gateway()
    job = await gateway.create()
    step = job.num_steps // 2
    gateway.index.jobs[job.id] = replace(job, attempts=attempts, checkpoint_step=step)
    await gateway.service.cancel("ada", job.id)
    share = step / job.num_steps
    assert gateway.quotas.settled_jobs == [("ada", job.id, Cost(36.0, 6.0), Cost(36.0 * share, 6.0 * share))]


async def test_empty_account_is_turned_away_and_a_lowered_priority_is_said() -> None:
    gateway = Gateway()
    job = await gateway.create(budget=within_priority(Budget(priority=Priority.HIGH), Priority.NORMAL))
    assert (job.priority, job.report["degraded"]) == ("normal", ["priority"])
    gateway.quotas.is_empty = True
    with pytest.raises(QuotaExceeded):
        await gateway.create()


async def test_delete_cancels_then_removes_with_all_files() -> None:
    gateway = Gateway()
    job = await gateway.create()
    gateway.files.files = {f"{folder(job.id)}/clip.mp4": b"x", f"{folder('other')}/clip.mp4": b"y"}
    assert (await gateway.service.delete("ada", job.id)).status is JobStatus.FAILED
    assert job.id in gateway.index.jobs
    await gateway.service.delete("ada", job.id)
    assert gateway.index.jobs == {}
    assert list(gateway.files.files) == ["jobs/other/clip.mp4"]


async def test_job_that_is_completed_while_it_is_deleted_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway()
    job = await gateway.create()

    async def too_late(owner: str, job_id: str) -> JobRecord:
        gateway.index.jobs[job_id] = replace(job, status=JobStatus.COMPLETED)
        return gateway.index.jobs[job_id]

    monkeypatch.setattr(gateway.index, "cancel", too_late)
    await gateway.service.delete("ada", job.id)
    assert gateway.index.jobs == {}


async def test_deletion_is_not_held_up_by_files_that_cannot_be_reached() -> None:
    gateway = Gateway()
    job = await gateway.create()
    await gateway.service.cancel("ada", job.id)
    gateway.files.is_away = True
    await gateway.service.delete("ada", job.id)
    assert gateway.index.jobs == {}


async def test_files_are_read_in_parts_and_missing_ones_are_not_found() -> None:
    gateway = Gateway()
    artefact = Artefact(key="jobs/a/clip.mp4", media_type="video/mp4", num_bytes=10, sha256="0" * 64)
    with pytest.raises(UnknownVideo):
        await gateway.service.read(artefact, 0, 5)
    gateway.files.files[artefact.key] = b"0123456789"
    assert await gateway.service.read(artefact, 3, 6) == b"345"
    gateway.files.is_away = True
    with pytest.raises(StoreUnavailable) as caught:
        await gateway.service.read(artefact, 0, 5)
    assert "/srv" not in caught.value.message


# -- watching --------------------------------------------------------------------------------------------------------


async def test_watcher_hears_of_changes_only_and_of_the_end() -> None:
    gateway = Gateway()
    gateway.index.waiting_s = 20.0
    job = await gateway.create()
    async with asyncio.timeout(10), aclosing(gateway.service.watch("ada", job.id)) as updates:
        first = await anext(updates)
        assert (first.job, first.finish_at_s, first.preview) == (job, NOW_S + 20.0, None)
        waiting = asyncio.ensure_future(anext(updates))
        await turns()
        assert not waiting.done()
        gateway.files.files[preview_key(job.id)] = b"jpeg"
        running = replace(job, status=JobStatus.IN_PROGRESS, step=10, remaining_s=4.0)
        gateway.index.jobs[job.id] = running
        second = await waiting
        assert (second.job, second.finish_at_s, second.preview) == (running, NOW_S + 4.0, b"jpeg")
        gateway.index.jobs[job.id] = replace(running, step=11)
        assert (await anext(updates)).preview is None  # the same one is not sent again
        gateway.index.jobs[job.id] = replace(running, status=JobStatus.COMPLETED)
        last = await anext(updates)
        assert (last.job.status, last.finish_at_s, last.preview) == (JobStatus.COMPLETED, None, None)
        with pytest.raises(StopAsyncIteration):
            await anext(updates)


async def test_watcher_bears_with_a_short_outage_and_not_with_a_long_one() -> None:
    gateway = Gateway()
    job = await gateway.create()
    async with asyncio.timeout(10), aclosing(gateway.service.watch("ada", job.id)) as updates:
        await anext(updates)
        gateway.index.is_away = True
        waiting = asyncio.ensure_future(anext(updates))
        await until(lambda: gateway.index.num_refused > 1)
        assert not waiting.done()
        gateway.index.is_away = False
        gateway.index.jobs[job.id] = replace(job, step=1)
        assert (await waiting).job.step == 1
        gateway.index.is_away = True
        refused = gateway.index.num_refused
        waiting = asyncio.ensure_future(anext(updates))
        await until(lambda: gateway.index.num_refused > refused)
        gateway.now_s += 31
        with pytest.raises(StoreUnavailable):
            await waiting


async def test_watched_job_that_is_deleted_ends_the_watching() -> None:
    gateway = Gateway()
    job = await gateway.create()
    async with asyncio.timeout(10), aclosing(gateway.service.watch("ada", job.id)) as updates:
        await anext(updates)
        gateway.index.jobs.clear()
        with pytest.raises(UnknownVideo):
            await anext(updates)


async def test_preview_that_cannot_be_read_or_is_huge_is_left_out() -> None:
    gateway = Gateway()
    job = await gateway.create()
    gateway.index.jobs[job.id] = replace(job, status=JobStatus.IN_PROGRESS)
    gateway.files.files[preview_key(job.id)] = bytes(1 << 19)
    assert (await anext(gateway.service.watch("ada", job.id))).preview is None
    gateway.files.is_away = True
    assert (await anext(gateway.service.watch("ada", job.id))).preview is None


async def test_watchers_are_bounded_and_make_room_when_they_leave() -> None:
    gateway = Gateway()
    job = await gateway.create()
    watchers = [gateway.service.watch("ada", job.id) for _ in range(3)]
    for watcher in watchers[:2]:
        await anext(watcher)
    with pytest.raises(QueueFull, match="2 callers"):
        await anext(watchers[2])
    await watchers[0].aclose()
    late = gateway.service.watch("ada", job.id)
    assert (await anext(late)).job == job
    gateway.index.jobs.clear()
    with pytest.raises(UnknownVideo):
        await anext(late)
    assert gateway.service._num_watchers == 1
    await watchers[1].aclose()
    assert gateway.service._num_watchers == 0
