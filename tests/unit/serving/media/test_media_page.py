"""docs/media.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.config.sections import LimitSettings, MediaSettings
from serving.errors import ImageFetchFailed, ImageUrlRefused
from serving.telemetry import metrics

ROOT = Path(__file__).parents[4]
TEXT = (ROOT / "docs" / "media.md").read_text()


def settings_table() -> str:
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    shared = [("limits", LimitSettings, name) for name in ("max_images", "max_body_bytes")]
    ours = [("media", MediaSettings, name) for name in MediaSettings.model_fields]
    ours.sort(key=lambda item: not item[2].endswith("_per_request"))  # what counts over a request comes first
    for section, settings, name in shared + ours:
        field = settings.model_fields[name]
        default = f"{field.default:,}" if isinstance(field.default, int | float) else "none"
        rows.append(f"| `{section}.{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_table_of_settings_is_the_one_in_the_code() -> None:
    match = re.search(r"<!-- settings: [^>]*-->\n(.*?)<!-- /settings -->", TEXT, re.DOTALL)
    assert match is not None
    assert match[1].strip() == settings_table(), f"put this table into docs/media.md:\n{settings_table()}"


@pytest.mark.parametrize("code", [ImageUrlRefused.code, ImageFetchFailed.code])
def test_errors_of_the_fetcher_are_explained(code: str) -> None:
    assert f"`{code}`" in TEXT


def test_metrics_that_are_named_exist() -> None:
    known = set(re.findall(r'"(vireo_\w+)"', Path(metrics.__file__).read_text()))
    named = set(re.findall(r"`(vireo_\w+)", TEXT))
    assert len(named) == 6
    assert named <= known


def test_tests_that_are_named_exist() -> None:
    for name in set(re.findall(r"`(test_\w+\.py)`", TEXT)):
        assert (Path(__file__).parent / name).is_file(), name
