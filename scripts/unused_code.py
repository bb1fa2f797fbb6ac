#!/usr/bin/env python3
"""Finds code that nothing uses: functions, classes, methods, constants, and what can never run. Part of `make check`.

A name that a string spells out, as in ``"models.families.vdit.family:FAMILY"``, is used. Fields are not looked at: most
are read by what writes them out whole.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("serving", "models", "schedulers", "loadtest", "scripts", "deploy", "tests")
KINDS = ("function", "class", "method", "property", "import", "unreachable_code")
CALLED_BY_OTHERS = {
    "asyncio": ("connection_made", "data_received", "connection_lost"),
    "the standard library": ("do_GET", "do_POST", "log_message", "handle_starttag"),
    "importlib": ("get_code",),
    "hypothesis": ("teardown",),
    "grpc": ("intercept_service", "Export"),
    "schemathesis": ("map_body", "get_call_kwargs"),
    "torch": ("_save_to_state_dict", "_load_from_state_dict"),
    "typer": ("format_commands",),
    "Ray Serve": ("record_routing_stats", "on_request_completed", "choose_replicas", "initialize_state"),
    "vLLM": (
        "get_placeholder_str",
        "embed_multimodal",
        "get_hf_processor",
        "get_supported_mm_processor_kwargs",
        "get_supported_mm_limits",
        "get_mm_max_tokens_per_item",
        "get_dummy_text",
        "get_dummy_mm_data",
        "_get_mm_fields_config",
        "_get_prompt_updates",
        "is_argmax_invariant",
        "log_engine_initialized",
        "vireo_die_with",
        "vireo_encoder_seconds",
    ),
    "diffusers": ("expected_components", "intermediate_outputs"),
    "transformers": ("preprocess", "get_output_embeddings", "replace_image_token"),
}
DECORATORS = [
    "@*.fixture*",
    "@fixture*",
    "@field_validator*",
    "@model_validator*",
    "@invariant*",
    "@rule*",
    "@*.command*",
]
_SPELT = re.compile(r"[\w.]*[.:](\w+)")


def main() -> int:
    """Print what nothing uses; return the exit code."""
    used = {name for names in CALLED_BY_OTHERS.values() for name in names} | set(_spelt_out())
    scan = Vulture(ignore_decorators=DECORATORS)
    scan.scavenge([str(ROOT / folder) for folder in FOLDERS])
    found = [item for item in scan.get_unused_code() if _counts(item.typ, item.name) and item.name not in used]
    for item in found:
        print(f"{item.filename.relative_to(ROOT)}:{item.first_lineno}: {item.message}")
    return 1 if found else 0


def _counts(kind: str, name: str) -> bool:
    return kind in KINDS or (kind == "variable" and name.isupper())


def _spelt_out() -> Iterator[str]:
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if match := _SPELT.fullmatch(text):
                yield match.group(1)


if __name__ == "__main__":
    sys.exit(main())
