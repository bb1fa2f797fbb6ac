"""vdit: Efficient-vDiT on Open-Sora-Plan v1.2, clips from prompts. What its checkpoints were made for.

A folder holds one folder for each network: ``teacher`` (published: ``transformer``) and perhaps ``student`` for the
transformer, ``vae``, and ``text_encoder`` with its tokenizer.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from models.contract import Family, Knob, LazyRef, Point, SettingError, Source, Variant
from models.families.vdit.work import VAE
from models.files import peek_json
from models.identity import CHECKPOINTS
from models.io import ClipIO, ClipRequest, SamplerRange
from models.methods.attention.setting import parse_attention
from models.prompt_tokens import PromptCheck

TEACHER, STUDENT = "teacher", "student"


def _published(name: str, width: int, height: int, frames: int) -> Variant:
    steps = SamplerRange(weights=TEACHER, min_steps=20, max_steps=200, default_steps=100)
    return Variant(
        id=f"vdit-osp-{name}",
        summary=f"Open-Sora-Plan v1.2, {frames} frames of {width}x{height}",
        io=ClipIO(
            width=width,
            height=height,
            frame_counts=(frames,),
            fps=24,
            samplers=MappingProxyType({"euler_ancestral": steps, "ddim": steps}),
            default_guidance=7.5,
            scale_factor=0.18215,
            interpolation_scales=(1.0, 1.5, 2.0) if height == 720 else (1.0, 1.0, 1.0),
        ),
        config=MappingProxyType({"num_layers": 32, "num_heads": 24, "head_dim": 96, "caption_channels": 4096}),
        source=Source(
            paper="arXiv:2502.06155",
            url="https://github.com/PKU-YuanGroup/Open-Sora-Plan",
            commit="v1.2.0",
            licence="MIT",
        ),
    )


_NANO = Variant(
    id="vdit-nano",
    summary="a coloured shape or two, moving before a plain background",
    io=ClipIO(
        width=64,
        height=64,
        frame_counts=(29, 61),
        fps=8,
        samplers=MappingProxyType(
            {
                "ddim": SamplerRange(weights=TEACHER, min_steps=4, max_steps=100, default_steps=20),
                "euler_ancestral": SamplerRange(weights=TEACHER, min_steps=10, max_steps=100, default_steps=50),
                "consistency": SamplerRange(
                    weights=STUDENT, min_steps=4, max_steps=8, default_steps=4, multiple=4, is_guided=False
                ),
            }
        ),
        default_guidance=3.0,
        max_prompt_chars=400,
        max_text_tokens=24,
        latent_channels=8,
    ),
    config=MappingProxyType({"num_layers": 5, "num_heads": 4, "head_dim": 48, "caption_channels": 96}),
    source=Source(paper="arXiv:2502.06155", licence="Apache-2.0"),
    weights=CHECKPOINTS / "vdit-nano",
    is_nano=True,
    is_default=True,
)

FAMILY = Family(
    name="vdit",
    summary="Open-Sora-Plan's video transformer with tile masks, adaptive sparse attention and few-step students",
    tasks=("videos",),
    shape="job",
    variants=(
        _NANO,
        _published("29x720p", 1280, 720, 29),
        _published("93x720p", 1280, 720, 93),
        _published("93x480p", 640, 480, 93),
    ),
    knobs=(
        Knob(
            name="num_inference_steps",
            default=20,
            low=1,
            high=200,
            grid=(4, 8, 10, 20, 50),
            is_integer=True,
            summary="Denoising steps; each sampler has a range of its own.",
            trades="detail and faithfulness to the prompt",
        ),
        Knob(
            name="sampler",
            default="ddim",
            values=("consistency", "ddim", "euler_ancestral"),
            summary="How noise becomes a clip. A consistency student has weights of its own.",
        ),
        Knob(
            name="guidance_scale",
            default=1.0,
            low=1.0,
            high=20.0,
            grid=(1.0, 3.0),
            summary="How much the prompt counts; above 1 each step takes two passes.",
            trades="faithfulness to the prompt",
        ),
        Knob(
            name="attention",
            default="dense",
            parse=LazyRef("models.methods.attention.setting:parse_attention"),
            grid=("ras:0.5", "adaspa:0.8", "tile:2:6", "dense"),
            summary="dense, tile:K:REST (latent frames), adaspa:SPARSITY or ras:SHARE of tokens run.",
            trades="fine motion",
        ),
    ),
    build=LazyRef("models.families.vdit.networks:load"),
    runner=LazyRef("models.families.vdit.runner:VditRunner"),
    oracle=LazyRef("models.families.vdit.oracle:compare"),
    work=LazyRef("models.families.vdit.work:work"),
    allowed=LazyRef("models.families.vdit.family:check_allowed"),
    parts=MappingProxyType(
        {
            "found": LazyRef("models.families.vdit.family:found"),
            "prompt_check": LazyRef("models.families.vdit.family:prompt_check"),
            "calibrate": LazyRef("models.training.vdit.calibrate:calibrate"),
        }
    ),
)


def check_allowed(variant: Variant, request: ClipRequest, point: Point) -> None:
    """Pass what this variant can do. Raises: SettingError."""
    io: ClipIO = variant.io
    name, steps, guidance = str(point["sampler"]), int(point["num_inference_steps"]), float(point["guidance_scale"])
    frames = io.grid(request.num_frames)[0]
    if guidance > 1 and not io.check_sampler(name, steps).is_guided:
        raise SettingError(
            "guidance_scale",
            f"guidance_scale is {guidance:g}; {name} has its guidance in its weights: use 1, or leave it out",
        )
    io.check_sampler(name, steps)
    try:
        parse_attention(str(point["attention"])).check_frames(frames)
    except ValueError as error:
        raise SettingError("attention", str(error)) from None


def prompt_check(variant: Variant) -> PromptCheck:
    """What counts the tokens of a caption."""
    assert variant.weights is not None
    return PromptCheck(variant.weights / "text_encoder", variant.io.max_text_tokens)


def found(variant: Variant) -> Variant:
    """The variant as its folder has it: with those samplers whose weights are there, and the VAE's config.

    Raises: ValueError: no weights.
    """
    folder = variant.weights
    if folder is None or not (folder / VAE).is_dir():
        raise ValueError(
            f"{variant.id} has no weights here; a folder has transformer (or teacher), vae and text_encoder"
        )
    there = {
        name: made
        for name, made in variant.io.samplers.items()
        if made.weights == TEACHER or (folder / made.weights).is_dir()
    }
    decoder = peek_json(folder / VAE / "config.json")  # without one, loading the weights says what is wrong
    config = {**variant.config, VAE: decoder} if decoder else variant.config
    return replace(variant, io=replace(variant.io, samplers=there), config=MappingProxyType(dict(config)))
