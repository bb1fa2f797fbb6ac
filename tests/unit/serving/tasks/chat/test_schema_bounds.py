"""What a schema may ask for is counted from its text; each refusal names what was too much, and the limit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.errors import InvalidRequest
from serving.limits import IngressLimits
from serving.tasks.chat.rules import compact_schema
from tests.support.chat_clients import CHAT_SURFACES, Chat
from tests.support.clients import FrontDoor

LIMITS = IngressLimits()
INTEGER = {"type": "integer"}


def array(count: int, items: Any = INTEGER, name: str = "maxItems") -> dict[str, Any]:
    return {"type": "array", "items": items, name: count}


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def chain(length: int, last: Any, link: str = "allOf") -> dict[str, Any]:
    defs = {f"d{i}": {link: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(length)}
    return {"$defs": defs | {f"d{length}": last}, "$ref": "#/$defs/d0"}


def deep_refs(length: int, levels: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"d{length}": INTEGER}
    for i in range(length):
        inner: Any = {"$ref": f"#/$defs/d{i + 1}"}
        for _ in range(levels):
            inner = {"not": inner}
        defs[f"d{i}"] = inner
    return {"$defs": defs, "$ref": "#/$defs/d0"}


GOOD: dict[str, Any] = {
    "empty": {},
    "issue": array(9_000, name="minItems"),
    "order": array(100, {"type": "object", "properties": {"lines": array(50, {"$ref": "#/$defs/l"})}})
    | {
        "$defs": {
            "l": {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 500} for i in range(20)}}
        }
    },
    "tree": {
        "$defs": {"t": {"type": "object", "properties": {"kids": array(10, {"$ref": "#/$defs/t"})}}},
        "$ref": "#/$defs/t",
    },
    "list_of_itself": {"type": "array", "items": {"$ref": "#"}, "maxItems": 5},
    "property_named_like_a_count": {
        "type": "object",
        "properties": {"minItems": INTEGER, "pattern": {"type": "string"}},
    },
    "constant_that_looks_like_a_schema": {"const": {"minItems": 10**9, "pattern": "("}, "default": {"maxItems": 10**9}},
    "date": text(r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2})?$"),
    "letters": text(r"^[\p{L}\p{N}\]\[ ]{1,200}\x{41}\u{1F600}?$"),
    "brace": text(r"^a{b}\{1000000000\}$"),
    "no_quantifier": text("a{" + " " * 9_000),
    "cents": {"type": "number", "multipleOf": 0.01},
    "dozens": {"type": "integer", "multipleOf": 12},
    "million": {"type": "integer", "multipleOf": 1_000_000},
    "union": {"anyOf": [{"type": "object", "properties": {f"p{i}": INTEGER}} for i in range(100)]},
    "enum": {"enum": [f"v{i}" for i in range(1500)]},
    "escaped_pointer": {"$defs": {"a/b~c": INTEGER}, "$ref": "#/$defs/a~1b~0c"},
    "chain": chain(8, INTEGER),
}
COUNTS = (
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
BAD: dict[str, tuple[Any, str]] = {
    "issue": (array(10_000_000, name="minItems"), "minItems 10000000; the limit is 10000"),
    **{name: ({name: 10_001}, f"{name} 10001; the limit is 10000") for name in COUNTS},
    "fraction": ({"maxLength": 1e300}, "maxLength 1e[+]300"),
    "huge": ({"maxLength": 10**400}, "maxLength .*; the limit is 10000"),
    "under_properties": ({"properties": {"a": {"items": {"minLength": 10**6}}}}, "minLength 1000000"),
    "under_defs": ({"$defs": {"a": {"minLength": 10**6}}}, "minLength 1000000"),
    "under_prefix": ({"prefixItems": [{"not": {"if": {"minLength": 10**6}}}]}, "minLength 1000000"),
    "product": (array(5000, array(500)), "multiply to 2500000; the limit is 1000000"),
    "product_by_name": (
        {"$defs": {"a": array(5000, {"$ref": "#/$defs/b"}), "b": array(500)}, "$ref": "#/$defs/a"},
        "multiply to 2500000",
    ),
    "product_of_objects": (
        {"minProperties": 2000, "additionalProperties": {"minProperties": 2000}}, "multiply to 4000000"
    ),
    "many_counts": ({"properties": {f"p{i}": array(100) for i in range(120)}}, "the limit is 10000"),
    "quantifier": (text("^a{10000000}$"), r"quantifier '\{10000000\}'; the limit is 10000"),
    "quantifier_range": (text("^a{1,20000}$"), "quantifier"),
    "quantifier_spaces": (text("^a{ 20000 }$"), "quantifier"),
    "quantifier_no_low": (text("^a{,20000}$"), "quantifier"),
    "quantifier_digits": (text("^a{" + "9" * 5000 + "}$"), "quantifier"),
    "quantifiers_nested": (text("^(((a{100}){100}){100}){100}$"), "the limit is 10000"),
    "quantifiers_stacked": (text("^a{1000}{1000}$"), "the limit is 10000"),
    "quantifiers_in_a_row": (text("a{9000}b{9000}"), "the limit is 10000"),
    "quantifier_of_a_set": (text("^([a-z{]{200}){200}$"), "the limit is 10000"),
    "quantifier_of_a_class": (text(r"^(\p{L}{200}){200}$"), "the limit is 10000"),
    "pattern_of_names": ({"patternProperties": {"^a{20000}$": INTEGER}}, "quantifier"),
    "pattern_open": (text("(a"), r"lacks a \)"),
    "pattern_closed": (text("a)"), r"a \) too many"),
    "pattern_verbose": (text("(?x)(a{5000}#[\n){5000}#])"), "flag x"),
    "pattern_verbose_group": (text("(?ix-s:a)"), "flag x"),
    "pattern_set_in_set": (text("[a[b]]"), r"contains \["),
    "pattern_set_bracket": (text("[]a]"), r"begins with \]"),
    "pattern_groups": (text("(" * 100 + ")" * 100), "64 groups"),
    "patterns_intersect": ({"allOf": [text("a{200}"), text("b{200}")]}, "alternatives in one place that multiply to"),
    "multiple": ({"type": "integer", "multipleOf": 1_000_003}, "multiply to 1000003; the limit is 10000"),
    "multiples": ({"allOf": [{"multipleOf": prime} for prime in (97, 89, 83)]}, "alternatives"),
    "multiple_of_parts": ({"type": "number", "multipleOf": 997.0001}, "alternatives"),
    "branches": ({"allOf": [{"anyOf": [text(f"a{i}"), text(f"b{i}")]} for i in range(14)]}, "alternatives"),
    "branches_by_name": (chain(20, {"anyOf": [INTEGER, {"type": "string"}]}), "alternatives"),
    "constants": ({"enum": [{"a": i} for i in range(700)]}, "the limit is 10000"),
    "reference_outside": ({"$ref": "https://example.org/schema"}, "which is nowhere in it"),
    "reference_lost": ({"$ref": "#/$defs/a"}, "which is nowhere in it"),
    "reference_anchor": ({"$ref": "#a"}, "which is nowhere in it"),
    "references_deep": (deep_refs(30, 20), "schemas inside each other, by [$]ref too"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_sensible_schema_is_taken_as_it_is(name: str) -> None:
    assert json.loads(compact_schema(GOOD[name], LIMITS, "schema")) == GOOD[name]


@pytest.mark.parametrize("name", BAD)
def test_schema_that_asks_for_too_much_is_refused_by_name(name: str) -> None:
    schema, message = BAD[name]
    with pytest.raises(InvalidRequest, match=message) as caught:
        compact_schema(schema, LIMITS, "schema")
    assert caught.value.param == "schema"
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("surface", sorted(CHAT_SURFACES))
async def test_every_surface_has_the_same_bounds(surface: str) -> None:
    door = FrontDoor()
    outcome = await CHAT_SURFACES[surface](door, Chat(schema=BAD["issue"][0]))
    assert outcome.error == "invalid_request"
    assert "minItems 10000000; the limit is 10000" in outcome.message
    assert not door.service.chats
