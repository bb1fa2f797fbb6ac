"""A job task and a family for it, neither of which is about video: pictures of so many dots, one dot a step.

What a second task writes: a schema, a plan, a reply and a ``CreatedJobHttp``; and its family, an io with a request
class.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from typing_extensions import TypedDict

from models.contract import Family, Figures, JobState, Knob, LazyRef, Phase, Point, Variant, Work
from schedulers.plan import Load
from serving.delivery.job.base import JobModel, JobPlan, JobRequest, JobTask
from serving.delivery.job.http import CreatedJobHttp
from serving.domain import Surface
from serving.errors import UnknownVideo, VideoFailed, VideoNotReady
from serving.front.http.call import Call
from serving.front.http.json_body import Strict, validate
from serving.front.http.json_scan import Bounds
from serving.front.http.openapi import json_content
from serving.service import card_of
from serving.stores.jobs.base import JobRecord

# -- the family ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DotsRequest:
    """What ``open`` is given."""

    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DotsIO:
    """A colour in, a square picture out."""

    request: ClassVar[type[DotsRequest]] = DotsRequest
    side: int


def work(variant: Variant, request: DotsRequest, point: Point) -> Work:
    """A dot a step."""
    return Work({"macs": float(point["dots"])}, 3 * variant.io.side**2)


FAMILY = Family(
    name="dots",
    summary="dots",
    tasks=("dots",),
    shape="job",
    variants=(Variant(id="dots-8", summary="8 by 8", io=DotsIO(side=8)),),
    knobs=(Knob(name="dots", default=4, low=1, high=64, is_integer=True, summary="How many.", trades="dots"),),
    work=LazyRef("tests.support.dots:work"),
    build=LazyRef("tests.support.dots:DotsRunner"),
    runner=LazyRef("tests.support.dots:DotsRunner"),
)


class DotsRunner:
    """``models.contract.Job``. The seed says where the first dot is."""

    def open(self, request: Any, point: Point, seed: int) -> JobState:
        picture = np.zeros((8, 8, 3), np.uint8)
        return JobState(request=request, point=point, seed=seed, kept={"step": 0, "picture": picture})

    def remaining(self, state: JobState) -> Mapping[Phase, int]:
        left = int(state.point["dots"]) - state.kept["step"]
        return {"denoise": left} if left else {}

    def group_key(self, state: JobState) -> Hashable:
        return ()

    def step(self, states: Sequence[JobState]) -> Sequence[Figures | None]:
        for state in states:
            step, picture = state.kept["step"], state.kept["picture"].copy()
            picture.reshape(-1, 3)[(state.seed + step) % 64] = state.request.colour
            state.kept = {"step": step + 1, "picture": picture}
        return [{"coverage": 1 / 64} for _ in states]

    def close(self, state: JobState) -> Mapping[str, Any]:
        return {"image": state.kept["picture"]}


# -- the task --------------------------------------------------------------------------------------------------------


class DotsBody(Strict):
    """Body of ``POST /v1/dots``."""

    colour: tuple[int, int, int]
    dots: int = 4


class DotsAnswer(TypedDict):
    """A job of dots."""

    id: str
    object: str
    status: str
    colour: list[int]
    dots: int
    url: str | None


DOTS = JobTask(
    name="dots",
    noun="dotted",
    does_not="makes no dots",
    main="image",
    unknown=UnknownVideo,
    not_ready=VideoNotReady,
    failed=VideoFailed,
)
CARD = card_of(FAMILY, FAMILY.variants[0], served_as=FAMILY.variants[0].id, created_s=0, checkpoint_sha256="0" * 64)


def plan(request: JobRequest[DotsBody], seed: int, load: Load) -> JobPlan:
    asked = request.asked
    return JobPlan(
        request=DotsRequest(colour=asked.colour),
        point={"dots": asked.dots},
        seed=seed,
        num_steps=asked.dots,
        name="dots",
        predicted_s=0.5,
        predicted_j=3.0,
        shown={"colour": list(asked.colour)},
    )


MODEL = JobModel(card=CARD, plan=plan)


async def read(call: Call) -> JobRequest[DotsBody]:
    document = await call.read_json(Bounds(max_values=16, max_plain_bytes=4096, max_string_bytes=64))
    request = JobRequest(
        request_id=call.request_id,
        surface=call.surface,
        tenant=call.tenant,
        model=CARD.id,
        asked=validate(DotsBody, {**document, "colour": tuple(document["colour"])}),
        budget=call.budget(),
        idempotency_key=call.header(b"idempotency-key") or "",
    )
    return call.front.admit(request, [CARD], call.visit)


def show(job: JobRecord, url: str, finish_at_s: float | None) -> DotsAnswer:
    return {
        "id": job.id,
        "object": "dotted",
        "status": job.status,
        "colour": job.shown["colour"],
        "dots": job.num_steps,
        "url": url if job.artefacts else None,
    }


def routes_of(service: Any) -> Any:
    """All of ``/v1/dots``."""
    return CreatedJobHttp(
        path="/v1/dots",
        id="dot",
        task=DOTS,
        service=lambda front: service,
        read=read,
        show=show,
        files=("image",),
        main_types=("image/png",),
        media_types=("image/png",),
        surface=Surface.HTTP_VIDEO,
        sync_surface=Surface.HTTP_VIDEO_SYNC,
        body=json_content(DotsBody),
        answer=DotsAnswer,
    ).routes()
