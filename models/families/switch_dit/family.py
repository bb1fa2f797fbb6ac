"""switch-dit: Switch-DiT, pictures of ImageNet's classes by a diffusion transformer with experts. Free of torch.

A folder holds the transformer, as one ``.safetensors`` or as the official training writes it (``.pt``), and in ``vae``
the autoencoder, as diffusers writes it. Its authors published no weights; which curve of noise a checkpoint was trained
with is not written in it, so each is a variant of its own.
"""

from __future__ import annotations

from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Literal

from models.class_card import check_request, is_guided
from models.class_words import IMAGENET
from models.contract import Family, Knob, LazyRef, Point, Source, Variant, Work
from models.families.switch_dit.config import SwitchDitConfig
from models.io import ImageIO, ImageRequest

_HERE = "models.families.switch_dit"
_CURVES: tuple[Literal["cosine", "linear"], ...] = ("cosine", "linear")
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
"""Of sd-vae-ft-ema."""
_SHAPES = {
    "s": {"width": 384, "depth": 12, "num_heads": 6},
    "b": {"width": 768, "depth": 12, "num_heads": 12},
    "l": {"width": 1024, "depth": 24, "num_heads": 16},
    "xl": {"width": 1152, "depth": 28, "num_heads": 16},
}
_FIGURES = {
    "s": {"fid_50k": 33.99, "inception_score": 42.99},
    "b": {"fid_50k": 16.21, "inception_score": 88.14},
    "l": {"fid_50k": 8.78, "inception_score": 162.97},
    "xl": {"fid_50k": 8.76, "inception_score": 169.17},
}


def _variant(
    network: SwitchDitConfig, vae: dict[str, Any], classes: str | tuple[tuple[str, ...], ...], **about: Any
) -> Variant:
    side = network.latent_side * 2 ** (len(vae["block_out_channels"]) - 1)
    return Variant(
        io=ImageIO(takes_prompt=True, is_seeded=True, size=(side, side), max_prompt_chars=200),
        config=MappingProxyType({"network": asdict(network), "vae": vae, "classes": classes}),
        source=Source(
            paper="arXiv:2403.09176",
            url="https://github.com/byeongjun-park/Switch-DiT",
            commit="12fa9a5",
            licence="none",
        ),
        **about,
    )


def _published(size: str, curve: Literal["cosine", "linear"]) -> Variant:
    return _variant(
        SwitchDitConfig(curve=curve, **_SHAPES[size]),
        _VAE,
        IMAGENET,
        id=f"switch-dit-{size}" if curve == "cosine" else f"switch-dit-{size}-{curve}",
        summary=f"Switch-DiT-{size.upper()}/2, trained with {curve} noise, 256x256, ImageNet's classes",
        published=_FIGURES[size],
    )


_MINIATURE = _variant(
    SwitchDitConfig(width=32, depth=2, num_heads=2, curve="cosine", latent_side=8, num_classes=4, num_timesteps=1000),
    {**_VAE, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 8},
    (("red", "blue"), ("circle", "square")),
    id="switch-dit-tiny",
    summary="for checks",
)


def check_allowed(variant: Variant, request: ImageRequest, point: Point) -> None:
    """Pass a size and a class that the checkpoint knows. Raises: SettingError."""
    check_request(variant, request)


def work(variant: Variant, request: ImageRequest, point: Point) -> Work:
    """Of all pictures of a request. Held: latents and the present estimate, and the pictures."""
    config, steps = SwitchDitConfig(**variant.config["network"]), int(point["num_inference_steps"])
    rows, tokens, width = request.count * (1 + is_guided(point)), config.num_tokens, config.width
    patch = config.patch_size**2 * width * 3 * config.latent_channels
    token = patch + config.depth * (13 * width**2 + 2 * tokens * width)
    row = tokens * token + width * (256 + width) + (6 * config.depth + 2) * width**2
    formed = config.depth * config.num_experts * width**2  # the matrix of the timestep
    pixels, numbers = request.count * request.width * request.height, config.latent_channels * config.latent_side**2
    units = {
        "macs": float(steps * (rows * row + formed)),
        "slices": float(steps),
        "token_steps": float(steps * rows * tokens),
        "pixels": float(pixels),
        "experts_read": float(steps * config.depth * config.taken),
    }
    return Work(units, bytes_held=8 * request.count * numbers + 3 * pixels)


FAMILY = Family(
    name="switch-dit",
    summary="Switch-DiT: pictures of classes by a diffusion transformer whose experts depend on the timestep alone",
    tasks=("images",),
    shape="job",
    variants=tuple(_published(size, curve) for size in _SHAPES for curve in _CURVES),
    miniatures=(_MINIATURE,),
    knobs=(
        Knob(
            name="num_inference_steps",
            default=250,
            low=2,
            high=1000,
            grid=(25, 50, 100, 250),
            is_integer=True,
            summary="Denoising steps.",
            trades="detail",
        ),
        Knob(
            name="guidance_scale",
            default=1.5,
            low=1.0,
            high=20.0,
            grid=(1.0, 1.5, 4.0),
            summary="How much the class counts; above 1 each step takes two passes.",
            trades="faithfulness to the class",
        ),
    ),
    build=LazyRef(f"{_HERE}.networks:build"),
    rename=LazyRef(f"{_HERE}.network:rename"),
    runner=LazyRef(f"{_HERE}.runner:SwitchDitRunner"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.family:work"),
    allowed=LazyRef(f"{_HERE}.family:check_allowed"),
    parts=MappingProxyType(
        {"save": LazyRef(f"{_HERE}.networks:save"), "example": LazyRef("models.class_card:example")}
    ),
)
