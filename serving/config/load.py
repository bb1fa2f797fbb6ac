"""Reading: who overrides whom, and that what is wrong is refused by its name.

profile defaults  <-  YAML file (--config or VIREO_CONFIG)  <-  files below VIREO_SECRETS, named section.field
                  <-  VIREO_SET / --set section.field=value  <-  the command's own options
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from models.contract import Shape
from models.registry import default_variants
from serving.config.models import ModelSettings, named_model
from serving.config.sections import Profile, Settings
from serving.errors import ConfigError

PROFILES: Mapping[Profile, Mapping[str, Any]] = {
    "local": {},
    "gpu": {"http": {"metrics_need_key": True}, "gateway": {"replicas": 2, "media_workers": 4}, "drain_s": 10.0},
    "cluster": {
        "http": {"host": "0.0.0.0", "metrics": False, "metrics_need_key": True},
        "redis": {"url": "redis://vireo-redis:6379/0"},
        "gateway": {"replicas": 2, "media_workers": 2},
        "drain_s": 30.0,
    },
}
_ROWS_ON_GPU = {"gpus": 0.2, "device": "cuda", "options": {"max_batch": 64}}
_MODELS: Mapping[Profile, Mapping[Shape, Mapping[str, Any]]] = {
    "local": {"unary": {}, "staged": {}, "stream": {}, "job": {}},
    "gpu": {
        "unary": _ROWS_ON_GPU,
        "staged": _ROWS_ON_GPU,
        # vLLM starts only where nearly all of a GPU's memory is free: more than half, so that no two share one.
        "stream": {
            "gpus": 0.8,
            "device": "cuda",
            "options": {"kv_cache_mb": 4096, "max_num_seqs": 64, "enforce_eager": False},
        },
        "job": {},
    },
    # No jobs: what they make needs a store that all nodes reach (jobs.store), which only the operator can name.
    "cluster": {"unary": {"replicas": 2}, "staged": {"replicas": 2}, "stream": {"replicas": 2}},
}
"""How a profile sets up the models that are served where nobody says what, by shape."""


def load(
    path: Path | None = None,
    overrides: Iterable[str] = (),
    profile: str | None = None,
    args: Mapping[str, Any] | None = None,
    models: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Settings:
    """Read the settings. VIREO_SECRETS names a folder of files, each the value of the field that it is named after.
    ``overrides`` are ``section.field=value`` strings; VIREO_SET holds more, separated by ``;``. ``args``, shaped as a
    file, come last. ``models``, each as ``named_model`` reads it, are served and no others, as they are set up
    otherwise. ``options``, each ``NAME=VALUE`` or ``ID.NAME=VALUE``, are fields or options of one of them.

    Raises: ConfigError: unreadable file, unknown field, wrong type; the message names the field.
    """
    path = path or (Path(os.environ["VIREO_CONFIG"]) if "VIREO_CONFIG" in os.environ else None)
    written: dict[str, Any] = _read_yaml(path) if path else {}
    if folder := os.environ.get("VIREO_SECRETS"):
        _apply_files(written, Path(folder))
    from_env = [item for item in os.environ.get("VIREO_SET", "").split(";") if item.strip()]
    for override in (*from_env, *overrides):
        _apply(written, override)
    written = _merge(written, args or {})
    name = profile or written.get("profile") or os.environ.get("VIREO_PROFILE", "local")
    return from_mapping({**written, "profile": name}, models, options)


def from_mapping(written: Mapping[str, Any], models: Sequence[str] = (), options: Sequence[str] = ()) -> Settings:
    """Lay what a user wrote over the defaults of its profile, strictly. ``models`` and ``options``: see ``load``.

    Raises: ConfigError: unknown profile or field, wrong type.
    """
    name = written.get("profile", "local")
    if name not in tuple(PROFILES):
        raise ConfigError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    merged = {"models": _defaults(name), **_merge(PROFILES[name], written)}
    if models:
        merged["models"] = _only(models, merged["models"])
    merged["models"] = deepcopy(merged["models"]) if options else merged["models"]
    for option in options:
        _set_option(merged["models"], option)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError("configuration is wrong: " + "; ".join(lines)) from None


def _defaults(profile: Profile) -> list[dict[str, Any]]:
    by_shape = _MODELS[profile]
    return [
        {"id": variant.id, **by_shape[family.shape]}
        for family, variant in default_variants()
        if family.shape in by_shape
    ]


def _set_option(entries: object, option: str) -> None:
    name, separator, text = option.partition("=")
    model, _, name = name.rpartition(".")  # ids may have dots, names have none
    found = [entry for entry in _mappings(entries) if model in ("", entry.get("id"))]
    if not separator or len(found) != 1:
        ids = ", ".join(str(entry.get("id")) for entry in _mappings(entries))
        raise ConfigError(
            f"--option {option!r} is for no single model: write NAME=VALUE where one is served, ID.NAME=VALUE where "
            f"several are; served are {ids}"
        )
    (entry,) = found
    value = _parsed(text, f"--option {name}")
    if name in ModelSettings.model_fields:
        entry[name] = value
    else:
        entry["options"] = {**(entry.get("options") or {}), name: value}


def _mappings(entries: object) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list | tuple) else []


def _only(named: Sequence[str], written: object) -> list[dict[str, Any]]:
    entries = _mappings(written)
    chosen = []
    for fields in map(named_model, named):
        entry = next((entry for entry in entries if entry.get("id") == fields["id"]), {})
        chosen.append({**entry, **fields})
    return chosen


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"configuration {path} must be a mapping of sections")
    return loaded


def _apply(written: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {name[:100]!r} has no '='; write section.field=value")
    _put(written, name.strip(), _parsed(text, f"--set {name}"), f"--set {name}")


def _parsed(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{option}: the value is not YAML; put it in quotes") from None


def _apply_files(written: dict[str, Any], folder: Path) -> None:
    """Names that begin with a dot are what Kubernetes uses to exchange all files at once."""
    try:
        texts = {path.name: path.read_text("utf-8") for path in folder.iterdir() if not path.name.startswith(".")}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read VIREO_SECRETS: {error}") from None
    for name, text in sorted(texts.items()):
        # A password that looks like a number is still text; `tenants` alone is more than a text.
        value = _parsed_list(name, text) if name == "tenants" else text.removesuffix("\n")
        _put(written, name, value, f"{folder / name}")


def _parsed_list(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the secret file {name} is not YAML or JSON") from None


def _put(written: dict[str, Any], name: str, value: Any, source: str) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        if written.get(section) is None:
            written[section] = {}
        written = written[section]
        if not isinstance(written, dict):
            raise ConfigError(f"{source}: {section} is not a section; give a list whole, as {section}=[...]")
    written[leaf] = value


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
