"""Every pipeline that is run here. Another one is a file beside this and a line below. Free of torch."""

from __future__ import annotations

from models.contract import Variant
from models.families.diffusers.architecture import Architecture, Configs
from models.families.diffusers.pipelines import (
    flux,
    hunyuan_video,
    ltx,
    qwen_image,
    stable_diffusion_3,
    stable_diffusion_xl,
    wan,
)

ARCHITECTURES: tuple[Architecture, ...] = (
    *wan.ARCHITECTURES,
    *ltx.ARCHITECTURES,
    *hunyuan_video.ARCHITECTURES,
    *flux.ARCHITECTURES,
    *stable_diffusion_3.ARCHITECTURES,
    *stable_diffusion_xl.ARCHITECTURES,
    *qwen_image.ARCHITECTURES,
)


def named(name: str) -> Architecture:
    """The architecture of that name. Raises: ValueError: there is none."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    raise ValueError(f"diffusers has no architecture {name!r}; there are {', '.join(a.name for a in ARCHITECTURES)}")


def classes_of(architecture: Architecture) -> tuple[str, ...]:
    """What ``model_index.json`` of its folders may name."""
    return tuple(filter(None, (architecture.pipeline, architecture.pipeline_with_picture)))


def of(variant: Variant) -> Architecture:
    """The architecture of a variant."""
    return named(variant.config["architecture"])


def of_folder(configs: Configs) -> Architecture:
    """The architecture of a folder. ``configs``: as far as they can be read.

    Raises: ValueError: nothing here runs it; says what is run.
    """
    pipeline = str(configs["index"].get("_class_name", ""))
    for architecture in ARCHITECTURES:
        if pipeline in classes_of(architecture) and architecture.is_for(configs):
            return architecture
    known = ", ".join(dict.fromkeys(name for architecture in ARCHITECTURES for name in classes_of(architecture)))
    raise ValueError(f"{pipeline or 'a folder without _class_name'} is not run step by step here; what is: {known}")
