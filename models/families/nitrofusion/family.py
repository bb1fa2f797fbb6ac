"""NitroFusion: a picture from a prompt in one to four steps, on a folder of SDXL as diffusers writes it. Free of torch.

The folder is that of Stable Diffusion XL, beside which lies one of NitroFusion's two published UNets, under its
published name: ``nitrosd-realism_unet.safetensors`` or ``nitrosd-vibrant_unet.safetensors``. The files of configuration
say everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.contract import Family, Knob, LazyRef, Point, SettingError, Source, Variant, Work
from models.families.nitrofusion.tiny import TINY
from models.files import read_network_config
from models.io import ImageIO, ImageRequest

_HERE = "models.families.nitrofusion"
MAX_TOKENS = 77
"""Of a prompt, with those that begin and end it: all that CLIP has places for."""
_SHIFTS = {"realism": 250, "vibrant": 500}
_LICENCES = {"realism": "cc-by-nc-4.0", "vibrant": "openrail++"}
_FILES = {
    "model_index": "model_index.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
}


def unet_file(name: str) -> str:
    """Name of the published weights."""
    return f"nitrosd-{name}_unet.safetensors"


def resolve(name: str, folder: Path | None = None) -> Variant:
    """The variant behind ``nitrofusion:name``: its folder's networks, or without a folder the same in miniature, which
    cannot be served and is there for the checks.

    Raises: ValueError: there is no such variant, or the folder does not hold it.
    """
    if name not in _SHIFTS:
        raise ValueError(f"NitroFusion has no {name!r}; there are {', '.join(_SHIFTS)}")
    config: Mapping[str, Any] = (
        TINY if folder is None else {part: read_network_config(folder / file) for part, file in _FILES.items()}
    )
    _check(config, folder)
    if folder is not None and not (folder / unet_file(name)).is_file():
        others = ", ".join(sorted(path.name for path in folder.glob("nitrosd-*"))) or "none of NitroFusion's"
        raise ValueError(f"{folder} has no {unet_file(name)}, which nitrofusion:{name} needs; it has {others}")
    factor, side = _factor(config), int(config["unet"]["sample_size"]) * _factor(config)
    return Variant(
        id=f"nitrofusion:{name}",
        summary=f"NitroSD-{name.capitalize()}, pictures of {side}x{side} in one to four steps",
        io=ImageIO(
            takes_prompt=True,
            is_seeded=True,
            size=(side, side),
            min_side=side // 2,
            max_side=side * 3 // 2,
            multiple=factor,
            max_prompt_chars=1000,
        ),
        config={**config, "shift": _SHIFTS[name]},
        source=Source(
            paper="arXiv:2412.02030",
            url="https://github.com/ChenDarYen/NitroFusion",
            commit="75ce562",
            licence=_LICENCES[name],
        ),
        weights=folder,
    )


def recognise(folder: Path) -> str | None:
    """Which of the two UNets lies beside the SDXL. Raises: ValueError: both."""
    names = [name for name in _SHIFTS if (folder / unet_file(name)).is_file()]
    if len(names) > 1:
        words = " or ".join(f"NAME=nitrofusion:{name}@{folder}" for name in names)
        raise ValueError(f"{folder} has the UNets {', '.join(names)} of NitroFusion: say which, {words}")
    return names[0] if names else None


def weight_files(variant: Variant) -> dict[str, list[Path]]:
    """NitroFusion's UNet is read in place of SDXL's."""
    assert variant.weights is not None
    return {"unet": [variant.weights / unet_file(variant.id.rpartition(":")[2])]}


def _check(config: Mapping[str, Any], folder: Path | None) -> None:
    """Pass networks that belong together, and that NitroFusion was distilled from. Raises: ValueError."""
    unet, vae, first, second = (config[part] for part in ("unet", "vae", "text_encoder", "text_encoder_2"))
    text, times = first["hidden_size"] + second["hidden_size"], 6 * unet.get("addition_time_embed_dim", 0)
    embedding = "unet projection_class_embeddings_input_dim"
    for what, found, needed in (
        ("model_index _class_name", config["model_index"].get("_class_name"), "StableDiffusionXLPipeline"),
        ("unet addition_embed_type", unet.get("addition_embed_type"), "text_time"),
        ("unet time_cond_proj_dim", unet.get("time_cond_proj_dim"), None),
        ("unet in_channels", unet.get("in_channels"), vae.get("latent_channels")),
        ("unet out_channels", unet.get("out_channels"), vae.get("latent_channels")),
        ("unet cross_attention_dim", unet.get("cross_attention_dim"), text),
        (embedding, unet.get(embedding.split()[1]), second["projection_dim"] + times),
        ("vae latents_mean", vae.get("latents_mean"), None),
    ):
        if found != needed:
            raise ValueError(f"{folder}: {what} is {found}; NitroFusion needs {needed}: give a folder of SDXL")


def _factor(config: Mapping[str, Any]) -> int:
    """Pixels of a latent pixel's side."""
    return int(2 ** (len(config["vae"]["block_out_channels"]) - 1))


def check_allowed(variant: Variant, request: ImageRequest, point: Point) -> None:
    """Pass a size that the networks take. Raises: SettingError."""
    try:
        variant.io.check_size(request.width, request.height)
    except ValueError as error:
        raise SettingError("size", str(error)) from None


def work(variant: Variant, request: ImageRequest, point: Point) -> Work:
    """Of all pictures of a request. Held: their latents, the embeddings of the prompt, and what has been decoded."""
    config, steps = variant.config, int(point["num_inference_steps"])
    pixels, factor = request.count * request.width * request.height, _factor(config)
    latent_pixels = pixels // factor**2
    embeddings = MAX_TOKENS * config["unet"]["cross_attention_dim"] + config["text_encoder_2"]["projection_dim"]
    return Work(
        {
            "slices": steps,
            "token_steps": steps * latent_pixels,
            "prompt_tokens": 2 * MAX_TOKENS,
            "pixels": pixels,
        },
        bytes_held=4 * (config["unet"]["in_channels"] * latent_pixels + embeddings) + 3 * pixels,
    )


FAMILY = Family(
    name="nitrofusion",
    summary="NitroFusion's distilled SDXL: pictures of prompts in one to four steps",
    tasks=("images",),
    shape="job",
    resolve=LazyRef(f"{_HERE}.family:resolve"),
    knobs=(
        Knob(
            name="num_inference_steps",
            default=1,
            values=(1, 2, 3, 4),
            summary="Denoising steps.",
            trades="detail",
        ),
    ),
    build=LazyRef(f"{_HERE}.networks:build"),
    runner=LazyRef(f"{_HERE}.runner:NitroRunner"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.family:work"),
    allowed=LazyRef(f"{_HERE}.family:check_allowed"),
    examples=("realism", "vibrant"),
    parts=MappingProxyType(
        {
            "recognise": LazyRef(f"{_HERE}.family:recognise"),
            "weight_files": LazyRef(f"{_HERE}.family:weight_files"),
            "save": LazyRef(f"{_HERE}.networks:save"),
        }
    ),
)
