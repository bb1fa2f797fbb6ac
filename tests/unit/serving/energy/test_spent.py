"""Sums of what parts of a request took."""

from __future__ import annotations

import pytest

from serving.energy.spent import Spent, total


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ([], Spent(0.0, 0.0, "estimate")),
        ([Spent(1.0, 2.0, "nvml"), Spent(0.5, 1.0, "nvml")], Spent(1.5, 3.0, "nvml")),
        ([Spent(1.0, 2.0, "nvml"), Spent(0.5, None, "nvml")], Spent(1.5, None, "nvml")),
        ([Spent(1.0, 2.0, "nvml"), Spent(0.0, None, "rapl")], Spent(1.0, 2.0, "nvml")),
        ([Spent(1.0, 2.0, "rapl"), Spent(1.0, 3.0, "estimate")], Spent(2.0, 5.0, "estimate+rapl")),
    ],
)
def test_joules_are_known_if_all_are(parts: list[Spent], whole: Spent) -> None:
    assert total(parts) == whole
    assert total(reversed(parts)) == whole


def test_what_is_charged_has_the_source_that_it_really_has() -> None:
    assert Spent(2.0, 9.0, "nvml").charged(6.0) == Spent(2.0, 9.0, "nvml")
    assert Spent(2.0, None, "nvml").charged(6.0) == Spent(2.0, 12.0, "estimate")


def test_attributes_leave_out_what_is_not_known() -> None:
    assert Spent(2.0, None, "nvml").attributes == {"vireo.energy_source": "nvml"}
    assert Spent(2.0, 9.0, "nvml").attributes == {"vireo.energy_j": 9.0, "vireo.energy_source": "nvml"}
