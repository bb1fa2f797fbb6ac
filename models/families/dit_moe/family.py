"""dit-moe: DiT-MoE, pictures of classes by a diffusion transformer with experts. Free of torch.

A folder holds the transformer, as one ``.safetensors`` or published ``.pt``, and in ``vae`` the autoencoder, as
diffusers writes it. A variant says how its checkpoint was trained, and so how it must be sampled.
"""

from __future__ import annotations

from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from models.class_card import check_request, is_guided
from models.class_words import IMAGENET
from models.contract import ExpertFacts, Family, Knob, LazyRef, Point, SettingError, Source, Value, Variant, Work
from models.families.dit_moe.config import NANO, AttentionLayout, DitMoeConfig, Process
from models.identity import CHECKPOINTS
from models.io import ImageIO, ImageRequest

_HERE = "models.families.dit_moe"
_TRAINING = "models.training.dit_moe"
AS_TRAINED = "as_trained"
NANO_CLASSES = (
    ("red", "orange", "green", "blue", "purple", "black"),
    ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "circle", "square", "triangle", "cross", "star"),
)
"""Colours, and things."""


def variant_of(
    network: DitMoeConfig,
    process: Process,
    vae: dict[str, Any],
    classes: str | tuple[tuple[str, ...], ...],
    example: str = "class 1",
    **about: Any,
) -> Variant:
    """A checkpoint of this shape. ``vae``: what matters of its autoencoder's configuration, and must be there.
    ``example``: a prompt.

    Raises: ValueError: a process that the network was not made for.
    """
    if process == "ddpm" and not network.predicts_variance:
        raise ValueError("ddpm needs a network that predicts the variance, too")
    side = network.latent_side * 2 ** (len(vae["block_out_channels"]) - 1)
    return Variant(
        io=ImageIO(takes_prompt=True, is_seeded=True, size=(side, side), max_prompt_chars=200, example=example),
        config=MappingProxyType(
            {
                "network": asdict(network),
                "process": process,
                # The published guidance of DDPM leaves the last channel alone.
                "guided_channels": network.latent_channels - (process == "ddpm"),
                "vae": vae,
                "classes": classes,
            }
        ),
        **about,
    )


_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
_SCALE = {"latent_channels": 4, "scaling_factor": 0.18215}
_SOURCE = Source(paper="arXiv:2407.11633", url="https://github.com/feizc/DiT-MoE", commit="bd34bbb", licence="none")


def _published(size: str, experts: int, shape: tuple[int, int, int], total: str, active: str) -> Variant:
    """``shape``: width, depth and heads."""
    is_large, (width, depth, heads) = size in ("xl", "g"), shape
    attention: AttentionLayout = "normed" if is_large else "plain"
    defaults: dict[str, Value] = {"num_inference_steps": 50, "guidance_scale": 7.0}
    return variant_of(
        DitMoeConfig(width=width, depth=depth, num_heads=heads, num_experts=experts, attention=attention),
        "rectified_flow" if is_large else "ddpm",
        _VAE | _SCALE,
        IMAGENET,
        id=f"dit-moe-{size}-{experts}e2a",
        summary=f"DiT-MoE-{size.upper()}/2, {experts} experts of which 2 a token, 256x256, ImageNet's classes",
        source=_SOURCE,
        published={"parameters": total, "active": active},
        defaults=defaults if is_large else {"num_inference_steps": 250, "guidance_scale": 4.0},
    )


NANO_VARIANT = variant_of(
    NANO,
    "rectified_flow",
    {
        "block_out_channels": [16, 32, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "latent_channels": 4,
        "scaling_factor": 1.0,
    },
    NANO_CLASSES,
    "a green 7",
    id="dit-moe-nano",
    summary="a coloured digit or shape on a light ground, 64x64",
    source=Source(paper="arXiv:2407.11633", licence="Apache-2.0"),
    weights=CHECKPOINTS / "dit-moe-nano",
    is_nano=True,
    is_default=True,
)


def _miniature(process: Process, attention: AttentionLayout) -> Variant:
    network = DitMoeConfig(
        width=32, depth=2, num_heads=2, num_experts=4, attention=attention, latent_side=8, num_classes=4
    )
    vae = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 8}
    classes = (("red", "blue"), ("circle", "square"))
    name = process.replace("_", "-")
    return variant_of(network, process, vae | _SCALE, classes, id=f"dit-moe-tiny-{name}", summary="for checks")


def check_allowed(variant: Variant, request: ImageRequest, point: Point) -> None:
    """Pass what this checkpoint was trained for. Raises: SettingError."""
    process, sampler, steps = variant.config["process"], point["sampler"], int(point["num_inference_steps"])
    if sampler not in (AS_TRAINED, process):
        raise SettingError(
            "sampler", f"sampler is {sampler!r}; {variant.id} was trained for {process}: others give noise"
        )
    if process == "ddpm" and steps < 2:
        raise SettingError("num_inference_steps", f"num_inference_steps is {steps}; ddpm takes at least 2")
    if int(point["k0"]) > (most := variant.config["network"]["top_k"]):
        raise SettingError("k0", f"k0 is {point['k0']}; {variant.id} was trained with {most} experts a token")
    check_request(variant, request)


def work(variant: Variant, request: ImageRequest, point: Point) -> Work:
    """Of all pictures of a request. An expert counts as read once for all of them in a step and a layer."""
    config, steps, k0 = DitMoeConfig(**variant.config["network"]), int(point["num_inference_steps"]), int(point["k0"])
    rows, tokens, width = request.count * (1 + is_guided(point)), config.num_tokens, config.width
    patch = config.patch_size**2 * width * (config.latent_channels + config.out_channels)
    experts = 3 * width * (k0 * config.expert_width + config.shared_width) + width * config.num_experts
    token = patch + config.depth * (4 * width**2 + 2 * tokens * width + experts)
    row = tokens * token + width * (256 + width) + (6 * config.depth + 2) * width**2
    pixels, numbers = request.count * request.width * request.height, config.latent_channels * config.latent_side**2
    units = {
        "macs": float(steps * rows * row),
        "slices": float(steps),
        "token_steps": float(steps * rows * tokens),
        "pixels": float(pixels),
        "experts_read": float(steps * config.depth * min(config.num_experts, k0 * rows * tokens)),
    }
    return Work(units, bytes_held=8 * request.count * numbers + 3 * pixels)


def expert_facts(variant: Variant) -> ExpertFacts:
    """The part ``experts``."""
    config = DitMoeConfig(**variant.config["network"])
    return ExpertFacts(
        layers=config.depth,
        experts=config.num_experts,
        chosen=config.top_k,
        shared=1,
        parameters=config.num_parameters(config.num_experts),
        active_parameters=config.num_parameters(config.top_k),
    )


FAMILY = Family(
    name="dit-moe",
    summary="DiT-MoE: pictures of classes by a diffusion transformer whose tokens go to 2 of 8 or 16 experts",
    tasks=("images",),
    shape="job",
    variants=(
        NANO_VARIANT,
        _published("s", 8, (384, 12, 6), "199 M", "72 M"),
        _published("s", 16, (384, 12, 6), "369 M", "72 M"),
        _published("b", 8, (768, 12, 12), "796 M", "286 M"),
        _published("xl", 8, (1152, 28, 16), "4.2 B", "1.5 B"),
        _published("g", 16, (1408, 40, 16), "16.5 B", "3.2 B"),
    ),
    miniatures=(_miniature("ddpm", "plain"), _miniature("rectified_flow", "normed")),
    knobs=(
        Knob(
            name="num_inference_steps",
            default=20,
            low=1,
            high=250,
            grid=(2, 4, 8, 20, 50),
            is_integer=True,
            summary="Denoising steps.",
            trades="detail",
        ),
        Knob(
            name="guidance_scale",
            default=2.0,
            low=1.0,
            high=20.0,
            grid=(1.0, 2.0, 4.0),
            summary="How much the class counts; above 1 each step takes two passes.",
            trades="faithfulness to the class",
        ),
        Knob(name="k0", default=2, values=(1, 2), summary="Experts that each token goes to.", trades="detail"),
        Knob(
            name="sampler",
            default=AS_TRAINED,
            values=(AS_TRAINED, "ddpm", "rectified_flow"),
            summary="How noise becomes a picture. Only what the checkpoint was trained for is taken.",
        ),
    ),
    build=LazyRef(f"{_HERE}.networks:build"),
    runner=LazyRef(f"{_HERE}.runner:DitMoeRunner"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.family:work"),
    allowed=LazyRef(f"{_HERE}.family:check_allowed"),
    parts=MappingProxyType(
        {
            "save": LazyRef(f"{_HERE}.networks:save"),
            "example": LazyRef("models.class_card:example"),
            "experts": LazyRef(f"{_HERE}.family:expert_facts"),
            "train": LazyRef(f"{_TRAINING}.train:train_variant"),
            "judge": LazyRef(f"{_TRAINING}.calibrate:judge_of"),
            "card": LazyRef(f"{_TRAINING}.card:write_card"),
        }
    ),
)
