"""Settings of a model as they are typed: ``--exit-2 0.6`` is ``exit_2: 0.6``.

The model says which there are and what values they take (``GET /v1/models``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Any

from serving.client.told import Failed

OWN_OPTIONS: ContextVar[Sequence[str]] = ContextVar("own_options", default=())
"""Options of the command that is running: what a wrong one may have meant."""


def option_of(name: str) -> str:
    """Return a setting's name as an option."""
    return "--" + name.replace("_", "-")


def takes(schema: Mapping[str, Any]) -> str:
    """Return what values a setting takes, in a few words."""
    if "enum" in schema:
        return " | ".join(map(spelt, schema["enum"]))
    if "minimum" in schema:
        return f"{schema['minimum']:g} to {schema['maximum']:g}"
    return f"text such as {' | '.join(map(spelt, schema.get('examples', [schema['default']])))}"


def spelt(value: object) -> str:
    """Return a value as it is typed on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def read_settings(texts: Sequence[str], known: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
    """Give each setting's value the type that the model wants. What the value may be is the server's to say.

    Raises: Failed: not of the form NAME=VALUE, or no setting of that model.
    """
    schemas = {setting["name"]: setting["schema"] for setting in known if setting["scope"] == "request"}
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise Failed(f"--set {text} has no '='; write NAME=VALUE")
        if name not in schemas:
            options = list(map(option_of, schemas))
            line = f"there is no option {option_of(name)}, and {model} has no such setting; it has: "
            close = get_close_matches(option_of(name), [*OWN_OPTIONS.get(), *options], 1)
            raise Failed(line + (", ".join(options) or "none") + "".join(f"; did you mean {word}?" for word in close))
        settings[name] = _typed(value, schemas[name])
    return settings


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return next((value for value in schema["enum"] if spelt(value) == text), text)
    if schema["type"] not in ("integer", "number"):
        return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
