"""Words of ``vireo tenants``: values of fields, and durations."""

from __future__ import annotations

import pytest

from serving.cli.tenant_commands import _fields, _seconds
from serving.errors import ConfigError


@pytest.mark.parametrize("text", ["1.5e3", "1.5E3", "1500", "+1.5e+3", ".15e4", "15.e2"])
def test_a_number_is_a_number_however_it_is_written(text: str) -> None:
    assert _fields([f"burst_j={text}"]) == {"burst_j": 1500.0}


@pytest.mark.parametrize("text", ["e3", "1.5e", ".e3", "1e3x"])
def test_what_is_no_number_stays_a_text(text: str) -> None:
    assert _fields([f"burst_j={text}"]) == {"burst_j": text}


@pytest.mark.parametrize("text", ["3651d", "99999999d", "9" * 20 + "d", "9" * 400 + "d"])
def test_a_duration_ends_in_ten_years(text: str) -> None:
    assert _seconds("3650d") == 3650 * 86_400.0
    with pytest.raises(ConfigError, match="at most 10 years"):
        _seconds(text)
