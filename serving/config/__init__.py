"""Configuration: strict at the edge, resolved once into frozen values, logged in full with secrets masked.

    load()  ->  Settings (pydantic, extra="forbid")  ->  resolve()  ->  ResolvedConfig (frozen)

Environment variables are read in ``load`` and ``resolved`` only. ``auto`` never survives ``resolve``.
"""

from serving.config.load import PROFILES, from_mapping, load
from serving.config.models import (
    JobOptions,
    ModelSettings,
    ResolvedModel,
    StreamOptions,
    UnaryOptions,
    find_named,
    resolve_model,
)
from serving.config.resolved import ResolvedConfig, mask_url, resolve, run_dir_of, store_of
from serving.config.sections import GuardSettings, MediaSettings, Settings, TenantSettings

__all__ = [
    "PROFILES",
    "GuardSettings",
    "JobOptions",
    "MediaSettings",
    "ModelSettings",
    "ResolvedConfig",
    "ResolvedModel",
    "Settings",
    "StreamOptions",
    "TenantSettings",
    "UnaryOptions",
    "find_named",
    "from_mapping",
    "load",
    "mask_url",
    "resolve",
    "resolve_model",
    "run_dir_of",
    "store_of",
]
