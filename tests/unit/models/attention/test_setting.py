"""The setting ``attention`` as it is written."""

from __future__ import annotations

import pytest

from models.methods.attention.setting import AttentionKind, AttentionSetting, parse_attention


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dense", AttentionSetting(kind=AttentionKind.DENSE)),
        ("tile:2:6", AttentionSetting(kind=AttentionKind.TILE, references=2, others=6)),
        ("adaspa:0.8", AttentionSetting(kind=AttentionKind.ADASPA, amount=0.8)),
        ("ras:0.5", AttentionSetting(kind=AttentionKind.RAS, amount=0.5)),
    ],
)
def test_attention_is_read_as_it_is_written(text: str, expected: AttentionSetting) -> None:
    assert parse_attention(text) == expected
    assert expected.has_schedule == text.startswith(("adaspa", "ras"))


@pytest.mark.parametrize(
    "text", ["", "dense:", "tile", "tile:a:b", "tile:1:-1", "adaspa", "adaspa:-0.1", "ras:1.1", "ras:inf"]
)
def test_attention_of_no_known_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="use dense, tile:K"):
        parse_attention(text)
