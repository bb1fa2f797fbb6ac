"""What a gateway learns from jobs that are over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from schedulers.admission import Factors
from serving.delivery.job.base import JobModel
from serving.gateway.parts import _learn
from serving.stores.jobs.base import JobStatus
from tests.support.video_jobs import video_job

REPORT = {"compute_ms": 4e3, "charged_j": 1200.0}
JOB = replace(video_job("a", predicted_s=2.0, predicted_j=12.0), most_s=4.0, report=REPORT)


@pytest.fixture
def model() -> JobModel:
    return JobModel(card=None, plan=cast(Any, None))


def test_joules_of_a_job_say_nothing_of_its_seconds(model: JobModel) -> None:
    assert model.overruns.factors == Factors(2.0, 2.0)
    _learn({"videos": {"vdit-nano": model}}, replace(JOB, status=JobStatus.COMPLETED))
    assert model.overruns.factors == Factors(joules=1.25 * 50.0, seconds=pytest.approx(2.0**0.5))


def test_job_that_failed_or_is_of_no_model_here_teaches_nothing(model: JobModel) -> None:
    for models, status in (({"vdit-nano": model}, JobStatus.FAILED), ({"other": model}, JobStatus.COMPLETED)):
        _learn({"videos": models}, replace(JOB, status=status))
    assert model.overruns.factors == Factors(2.0, 2.0)
