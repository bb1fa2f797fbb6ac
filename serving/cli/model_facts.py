"""What a user may want to know of a model before serving it, from its card and its folder. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.contract import Family, Knob, Value, Variant
from models.folder import Component, pipeline_of
from models.identity import CHECKPOINTS, WEIGHTS_FILE
from models.io import ChatIO, ClipIO, ImageIO, PictureIO, knobs_of
from models.registry import families
from serving.cli import memory
from serving.cli.memory import BYTES_PER_NUMBER
from serving.operating_points import usual_request

_CONFIG_FILE = "config.json"


def weights_of(family: Family, variant: Variant) -> str:
    """Whether they are there, and if not, how to get them."""
    folder = variant.weights
    if folder is None:
        return f"bring your own (vireo convert {family.name})" if "convert" in family.parts else "bring your own"
    if any(folder.glob("**/*.safetensors")):
        return "included" if folder.is_relative_to(CHECKPOINTS) else "yours"
    ours = folder.is_relative_to(CHECKPOINTS)
    return f"not here: make train-{variant.id}" if ours else f"not here: no {WEIGHTS_FILE}"


def in_words(io: object) -> str:
    """What goes in and comes out, in a few words."""
    match io:
        case PictureIO():
            exits = f", {io.num_exits} exits" if io.num_exits > 1 else ""
            return f"{io.input_size}x{io.input_size}, {io.num_classes} classes{exits}"
        case ChatIO():
            tiles = f"{io.max_tiles} tiles of {io.tile_size}x{io.tile_size} an image"
            return (
                f"{io.max_model_len} tokens; {tiles if io.tile_size else f'{io.max_image_tokens} of an image at most'}"
            )
        case ClipIO():
            return f"{_sizes(io)}; {_lengths(io)}; {', '.join([*_inputs(io), *io.samplers])}"
        case ImageIO():
            return ", ".join(filter(None, ("from a picture" if io.takes_picture else "", _sides(io))))
    return ""


def facts_of(family: Family, variant: Variant) -> dict[str, Any]:
    """For a program. Raises: ValueError: the folder's files are not those of such a model."""
    facts = {
        "id": variant.id,
        "family": family.name,
        "tasks": family.tasks,
        "summary": variant.summary,
        "weights": weights_of(family, variant),
        "checkpoint_dir": None if variant.weights is None else str(variant.weights),
        "source": asdict(variant.source),
        "published": dict(variant.published),
        "settings": [
            {
                "name": knob.name,
                "scope": knob.scope,
                "trades": knob.trades,
                **knob.json_schema(),
                "refused": {str(value): why for value, why in _refused(family, variant, knob).items()},
            }
            for knob in knobs_of(family, variant)
        ],
        "settings_without": _settings_without(family, variant),
        "pipeline": None if variant.weights is None else pipeline_of(variant.weights),
        "components": [{**asdict(part), "parameters": part.parameters} for part in memory.components(family, variant)],
        "memory": memory.facts(family, variant),
        "more": _more(family, variant),
    }
    match variant.io:
        case ChatIO():
            return {**facts, **_chat_facts(variant.io, variant.weights)}
        case ClipIO() as io:
            samplers = {name: asdict(made) for name, made in io.samplers.items()}
            return {
                **facts,
                **io.facts,
                "width": io.width,
                "height": io.height,
                "frame_counts": io.frame_counts,
                "samplers": samplers,
            }
    return facts


def _chat_facts(io: ChatIO, folder: Path | None) -> dict[str, Any]:
    card = None if folder is None else folder / "README.md"
    return {
        **asdict(io),
        "max_image_tokens": io.max_image_tokens,
        "model_card": str(card) if card is not None and card.is_file() else None,
        "kv_numbers_per_token": None if folder is None else _kv_numbers(folder),
    }


def lines_of(family: Family, variant: Variant) -> list[str]:
    """For a terminal. Raises: ValueError: as ``facts_of``."""
    where = f" ({variant.weights})" if variant.weights else ""
    source = variant.source
    lines = [f"weights: {weights_of(family, variant)}{where}; licence: {source.licence}"]
    if origin := ", ".join(filter(None, (source.paper, source.url))):
        lines.append(f"from: {origin}")
    if variant.published:
        lines.append("published: " + "; ".join(f"{name} {_shown(value)}" for name, value in variant.published.items()))
    lines += _folder_lines(family, variant)
    match variant.io:
        case ChatIO():
            lines += _chat_lines(facts_of(family, variant))
        case ClipIO():
            lines += _clip_lines(variant)
    lines += [_setting_line(knob) + _why_not(family, variant, knob) for knob in knobs_of(family, variant)]
    if without := _settings_without(family, variant):
        lines.append(f"settings of other models of {family.name}, which this one has not: {', '.join(without)}")
    return [*lines, *(f"{name}: {_shown(value)}" for name, value in _more(family, variant).items())]


def _folder_lines(family: Family, variant: Variant) -> list[str]:
    """What is in the folder, by the heads of its files, and what it needs in memory."""
    parts = memory.components(family, variant)
    pipeline = None if variant.weights is None else pipeline_of(variant.weights)
    lines = [f"pipeline: {pipeline}"] if pipeline else []
    return [*lines, *map(_component_line, parts), memory.in_words(memory.facts(family, variant))]


def _component_line(part: Component) -> str:
    kind = f"{part.kind}, " if part.kind else ""
    size = memory.in_gib(part.file_bytes)
    if part.parameters is None:
        return f"network {part.name or '(folder)'}: {kind}pickled weights, {size}"
    count = f"{part.parameters / 1e9:.2f} B" if part.parameters >= 1e9 else f"{part.parameters / 1e6:.2f} M"
    return f"network {part.name or '(folder)'}: {kind}{count} parameters in {', '.join(part.numbers)}, {size}"


def _refused(family: Family, variant: Variant, knob: Knob) -> dict[Value, str]:
    """Values that the model does not take in its usual request, and why not."""
    if family.allowed is None or knob.scope != "request":
        return {}
    refused: dict[Value, str] = {}
    check, request = family.allowed.load(), usual_request(variant.io)
    for value in knob.points:
        try:
            check(variant, request, family.check_point({knob.name: value}))
        except ValueError as error:
            refused[value] = str(error)
    return refused


def _why_not(family: Family, variant: Variant, knob: Knob) -> str:
    values: dict[str, list[str]] = {}
    for value, why in _refused(family, variant, knob).items():
        values.setdefault(why, []).append(str(value))
    return "".join(f" With all else as usual not {' or '.join(refused)}: {why}." for why, refused in values.items())


def _settings_without(family: Family, variant: Variant) -> list[str]:
    """Settings that other models of the family have."""
    own = {knob.name for knob in family.of(variant).knobs}
    return [knob.name for knob in families()[family.name].knobs if knob.name not in own]


def _more(family: Family, variant: Variant) -> dict[str, Any]:
    """What its family knows besides."""
    return dict(family.part("facts")(variant)) if "facts" in family.parts else {}


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _setting_line(knob: Knob) -> str:
    takes = f"{' | '.join(map(str, knob.values))} " if knob.values else ""
    if knob.low is not None and knob.high is not None:
        takes = f"{knob.low:g} to {knob.high:g} "
    scope = "" if knob.scope == "request" else ", set for all requests"
    trades = f" Trades {knob.trades}." if knob.trades else ""
    return f"setting {knob.name}: {takes}(default {knob.default}{scope}). {knob.summary}{trades}"


def _chat_lines(facts: Mapping[str, Any]) -> list[str]:
    tiles = (
        f"tiles of {facts['tile_size']}x{facts['tile_size']}, {facts['max_tiles']} at most and "
        f"{facts['max_tiles_side']} a side, besides the thumbnail; {facts['tokens_per_tile']} tokens a tile, "
    )
    lines = [
        f"context: {facts['max_model_len']} tokens of prompt and answer together",
        f"images: {tiles if facts['tile_size'] else ''}{facts['max_image_tokens']} tokens an image at most",
    ]
    if (numbers := facts["kv_numbers_per_token"]) is not None:
        sizes = [f"{BYTES_PER_NUMBER[name] * numbers:,} bytes in {name}" for name in ("float32", "bfloat16")]
        lines.append(f"KV cache: {' or '.join(sizes)} for each token")
    if facts["model_card"] is not None:
        lines.append(f"model card: {facts['model_card']}")
    return lines


def kv_numbers_per_token(config: Mapping[str, Any]) -> int:
    """Numbers that the KV cache keeps of one token: a key and a value for each layer and KV head.

    Raises: ValueError: ``config`` (of a Hugging Face model folder) does not have the sizes.
    """
    text = config.get("text_config", config)
    try:
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        return int(2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_dim)
    except (KeyError, TypeError, ZeroDivisionError, AttributeError):
        raise ValueError(f"{_CONFIG_FILE} does not give the sizes of a language model") from None


def _kv_numbers(folder: Path) -> int | None:
    path = folder / _CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return kv_numbers_per_token(config if isinstance(config, dict) else {})


def _inputs(io: ClipIO) -> list[str]:
    """What goes in besides words."""
    if not io.takes_picture:
        return []
    if io.picture_is_optional:
        return ["from words, or from a picture and words"]
    return ["from a picture and words" if io.takes_prompt else "from a picture"]


def _sizes(io: ClipIO) -> str:
    listed = ", ".join(f"{width}x{height}" for width, height in ((io.width, io.height), *io.sizes))
    if not io.max_side:
        return listed
    return f"{listed}, or sides of {io.min_side} to {io.max_side} in steps of {io.multiple}"


def _sides(io: ImageIO) -> str:
    usual = f"{io.size[0]}x{io.size[1]}" if io.size else ""
    sides = f"sides of {io.min_side} to {io.max_side} in steps of {io.multiple}" if io.max_side else ""
    return ", or ".join(filter(None, (usual, sides)))


def _lengths(io: ClipIO) -> str:
    listed = " or ".join(map(str, io.frame_counts))
    if not io.max_frames:
        return f"{listed} frames"
    usual = "" if io.max_frames in io.frame_counts else f"{listed} frames, or "
    return f"{usual}up to {io.max_frames}{'' if usual else ' frames'}"


def _clip_lines(variant: Variant) -> list[str]:
    io: ClipIO = variant.io
    samplers = ", ".join(
        f"{name} ({made.weights}, {made.min_steps} to {made.max_steps} steps)" for name, made in io.samplers.items()
    )
    lengths = dict.fromkeys((*io.frame_counts, *((_longest(io),) if io.max_frames else ())))
    tokens = ", ".join(f"{frames} frames: {io.num_tokens(frames):,} tokens" for frames in lengths)
    lines = [f"clips: {_sizes(io)} at {io.fps} frames a second; {tokens}", f"samplers: {samplers}"]
    if io.takes_picture:
        optional = " that may be left out" if io.picture_is_optional else ""
        lines.append(f"first frame: a picture{optional}, scaled and cropped to the size of the clip")
    if io.takes_prompt:
        lines.append(
            f"guidance: {io.default_guidance:g}, at most {io.max_guidance:g}; prompts of {io.max_text_tokens} tokens"
        )
    return lines


def _longest(io: ClipIO) -> int:
    return io.max_frames - (io.max_frames - 1) % io.vae_stride[0]
