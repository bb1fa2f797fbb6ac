"""How much work a JSON schema may ask for, seen from its text alone and before any library gets it.

A schema of sixty bytes can ask for ten million items. Counted here, each with its limit:
    each count       minItems and its like, and every quantifier of a pattern
    size             all schemas, counts of items, patterns with their quantifiers written out, constants: the grammar
    alternatives     what intersects in one place: anyOf within allOf, several patterns, multipleOf
    nesting          counts inside counts, along ``$ref`` too: how many values an answer may be asked for
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from serving.errors import InvalidRequest
from serving.front.front import shown
from serving.limits import IngressLimits

_ITEM_COUNTS: Final = ("minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties")
_COUNTS: Final = (*_ITEM_COUNTS, "minLength", "maxLength")
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE: Final = (
    "items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties",
    "propertyNames", "not", "if", "then", "else", "contentSchema",
)  # fmt: skip
_MAX_DEPTH: Final = 128
"""Schemas inside each other, those that a ``$ref`` leads to included."""

_CONSTANT_LIST: Final = 16
"""What a list or object in ``const`` or ``enum`` weighs: it becomes a grammar of its own."""

_HUGE: Final = 1 << 62
_QUANTIFIER: Final = re.compile(r"\{\s*+(\d*+)\s*+(?:,\s*+(\d*+)\s*+)?\}", re.ASCII)
_FLAGS: Final = re.compile(r"\?([a-zA-Z-]*+)[:)]")
_MAX_GROUPS: Final = 64


class _Product(NamedTuple):
    nesting: int
    alternatives: int


class SchemaBounds:
    """Checks one schema, whose depth and bytes are within their limits. ``param`` names it in errors."""

    def __init__(self, schema: dict[str, Any], limits: IngressLimits, param: str) -> None:
        self._root = schema
        self._limits = limits
        self._param = param
        self._size = 0
        self._known: dict[int, _Product] = {}

    def check(self) -> None:
        """Raises: InvalidRequest: naming what is too large, and the limit."""
        self._product(self._root, 0)

    def _product(self, schema: Any, depth: int) -> _Product:
        if not isinstance(schema, dict):
            return _Product(1, 1)
        known = self._known.get(id(schema))
        if known is not None:
            return known
        self._within(depth, _MAX_DEPTH, "schemas inside each other, by $ref too:")
        self._known[id(schema)] = _Product(1, 1)  # what refers to itself counts once
        self._grow(1)
        count = self._count(schema)
        nesting = max((self._product(inner, depth + 1).nesting for inner in _children(schema)), default=1)
        alternatives = self._alternatives(schema)
        if "$ref" in schema:
            referred = self._product(self._target(schema["$ref"]), depth + 1)
            nesting, alternatives = max(nesting, referred.nesting), alternatives * referred.alternatives
        product = _Product(min(count * nesting, _HUGE), min(alternatives, _HUGE))
        self._within(product.nesting, self._limits.max_schema_nesting, "counts inside each other that multiply to")
        self._within(product.alternatives, self._limits.max_schema_size, "alternatives in one place that multiply to")
        self._known[id(schema)] = product
        return product

    def _count(self, schema: dict[str, Any]) -> int:
        """Check the counts and constants of one schema, not of what is inside it."""
        for name in _COUNTS:
            if _is_number(schema.get(name)):
                self._within(schema[name], self._limits.max_schema_count, name)
        most = max((int(schema[name]) for name in _ITEM_COUNTS if _is_number(schema.get(name))), default=1)
        self._grow(most - 1)
        for name in ("const", "enum"):
            if name in schema:
                self._grow(_weight(schema[name]))
        if isinstance(schema.get("patternProperties"), dict):
            for pattern in schema["patternProperties"]:
                self._pattern(pattern)
        return max(most, 1)

    def _alternatives(self, schema: dict[str, Any]) -> int:
        product = 1
        if isinstance(schema.get("pattern"), str):
            product *= self._pattern(schema["pattern"])
        if _is_number(schema.get("multipleOf")):
            product *= _coefficient(schema["multipleOf"])
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), list):
                product *= max(1, sum(self._known_alternatives(inner) for inner in schema[name]))
        if isinstance(schema.get("allOf"), list):
            for inner in schema["allOf"]:
                product = min(product * self._known_alternatives(inner), _HUGE)
        return min(product, _HUGE)

    def _known_alternatives(self, schema: Any) -> int:
        return self._known[id(schema)].alternatives if isinstance(schema, dict) else 1

    def _pattern(self, pattern: str) -> int:
        try:
            size = _Pattern(pattern, self._limits.max_schema_count).size()
        except ValueError as error:
            raise InvalidRequest(
                f"{self._param} has the pattern {shown(pattern)}: {error}", param=self._param
            ) from None
        self._grow(size)
        return size

    def _target(self, reference: Any) -> Any:
        """The schema that a reference points to."""
        node: Any = self._root
        steps = unquote(reference).split("/") if isinstance(reference, str) else [""]
        for index, step in enumerate(steps):
            name = step.replace("~1", "/").replace("~0", "~")
            if index == 0 and name == "#":
                continue
            if index and isinstance(node, dict) and name in node:
                node = node[name]
            elif index and isinstance(node, list) and name.isdecimal() and len(name) < 6 and int(name) < len(node):
                node = node[int(name)]
            else:
                raise InvalidRequest(
                    f"{self._param} has the $ref {shown(reference)}, which is nowhere in it; send '#/$defs/...'",
                    param=self._param,
                )
        return node

    def _grow(self, by: int) -> None:
        self._size += by
        self._within(self._size, self._limits.max_schema_size, "in all, items, patterns and constants of")

    def _within(self, value: float, limit: int, what: str) -> None:
        if value > limit:
            number = "far more" if value == _HUGE else shown(value)
            raise InvalidRequest(
                f"{self._param} has {what} {number}; the limit is {limit}. Simplify the schema", param=self._param
            )


def _children(schema: dict[str, Any]) -> Iterator[Any]:
    for name in _MAPS:
        if isinstance(schema.get(name), dict):
            yield from schema[name].values()
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            yield from schema[name]
    for name in _SINGLE:
        yield schema.get(name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _weight(constant: Any) -> int:
    if isinstance(constant, dict):
        return _CONSTANT_LIST + sum(map(_weight, constant.values()))
    return _CONSTANT_LIST + sum(map(_weight, constant)) if isinstance(constant, list) else 1


def _coefficient(number: float) -> int:
    """The digits that are left of a step without its zeros and its point: an automaton needs a state for each."""
    digits = Decimal(repr(number)).normalize().as_tuple().digits
    return max(1, min(int("".join(map(str, digits[:20]))), _HUGE))


class _Pattern:
    """How long a pattern is with its quantifiers written out. Where two dialects could read it in two ways, refused."""

    def __init__(self, text: str, max_count: int) -> None:
        self._text = text
        self._max_count = max_count
        self._at = 0

    def size(self) -> int:
        """Raises: ValueError: unbalanced, ambiguous, or a quantifier over the limit."""
        size = self._alternation(0)
        if self._at < len(self._text):
            raise ValueError("it has a ) too many")
        return size

    def _alternation(self, depth: int) -> int:
        """Up to the end of the group or of the text."""
        if depth > _MAX_GROUPS:
            raise ValueError(f"it has more than {_MAX_GROUPS} groups inside each other, the limit")
        size = 1
        while self._at < len(self._text) and self._text[self._at] != ")":
            size = min(size + self._atom(depth) * self._repeats(), _HUGE)
        return size

    def _atom(self, depth: int) -> int:
        char = self._text[self._at]
        self._at += 1
        if char == "\\":
            self._escape()
        elif char == "[":
            self._set()
        elif char == "(":
            return self._group(depth)
        return 1

    def _group(self, depth: int) -> int:
        flags = _FLAGS.match(self._text, self._at)
        if flags and "x" in flags[1]:
            raise ValueError("it has the flag x, which is not offered")
        size = self._alternation(depth + 1)
        if self._at == len(self._text):
            raise ValueError("it lacks a )")
        self._at += 1
        return size

    def _escape(self) -> None:
        """Skip what is escaped; a brace after some letters is part of the escape."""
        letter = self._text[self._at : self._at + 1]
        self._at += 1
        if letter and letter in "pPxuUkN" and self._text.startswith("{", self._at):
            end = self._text.find("}", self._at)
            if end < 0:
                raise ValueError("it lacks a }")
            self._at = end + 1

    def _set(self) -> None:
        """Skip a set of characters."""
        self._at += self._text.startswith("^", self._at)
        if self._text.startswith("]", self._at):
            raise ValueError("a set begins with ]; escape it")
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char == "]":
                return
            if char == "\\":
                self._escape()
            elif char == "[":
                raise ValueError("a set contains [; escape it")
        raise ValueError("it lacks a ]")

    def _repeats(self) -> int:
        product = 1
        while self._at < len(self._text):
            if self._text[self._at] in "*+?":
                self._at += 1
                continue
            match = _QUANTIFIER.match(self._text, self._at)
            if match is None:
                break
            self._at = match.end()
            for count in match.groups(""):
                if len(count) > 9 or int(count or 0) > self._max_count:
                    raise ValueError(f"it has the quantifier {shown(match[0])}; the limit is {self._max_count}")
            product = min(product * max(1, *(int(count or 0) for count in match.groups(""))), _HUGE)
        return product
