"""Dynamic Perceiver as Vireo knows it: its variants, its exits and what they cost. Free of torch.

The published numbers are those of the official code and of the commands in its README (docs/models/dyn-perceiver.md).
"""

from __future__ import annotations

from models.contract import Family, LazyRef, Point, Source, Variant, Work
from models.families.dyn_perceiver.config import (
    NUM_EXITS,
    DynPerceiverConfig,
    MobileNetV3Config,
    RegNetConfig,
    ResNetConfig,
)
from models.identity import CHECKPOINTS
from models.io import PictureIO
from models.methods.early_exit.knobs import deepest_exit, exit_knobs

_PAPER = "https://arxiv.org/abs/2306.11248"
# The official repository grants no licence.
_PUBLISHED = Source(
    paper=_PAPER,
    url="https://github.com/LeapLabTHU/Dynamic_Perceiver",
    commit="0d2a6299ded1515f31efdddb453b5d429202e806",
    licence="none",
)
_IMAGENET = PictureIO(input_size=224, num_classes=1000, num_exits=NUM_EXITS, resize_size=256)


# ``exit_macs`` and ``bytes_held`` are counted (``flops.py``, ``serving.replica``); tests compare them with the network.


def _published(
    name: str,
    summary: str,
    config: DynPerceiverConfig,
    top1: tuple[float, ...],
    macs: tuple[int, ...],
    bytes_held: int,
) -> Variant:
    return Variant(
        id=f"dyn-perceiver-{name}",
        summary=summary,
        io=_IMAGENET,
        config={"network": config, "exit_macs": macs, "bytes_held": bytes_held},
        source=_PUBLISHED,
        published={"top1": top1},
    )


# Little is spent before exit 1 and most of the rest between exits 1 and 2: stages 1 and 2 are one narrow block each,
# and their latents only read the features.
_NANO = Variant(
    id="dyn-perceiver-nano",
    summary="digits 0-9, 32x32, trained here on scikit-learn's handwritten digits; weights included",
    io=PictureIO(
        input_size=32,
        num_classes=10,
        num_exits=NUM_EXITS,
        labels=tuple("0123456789"),
        resize_size=32,
        fit="pad",
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    ),
    config={
        "network": DynPerceiverConfig(
            backbone=RegNetConfig(
                stem_width=16, widths=(16, 32, 80, 160), depths=(1, 1, 7, 4), strides=(2, 2, 1, 2), group_width=16
            ),
            num_latents=32,
            latent_depths=(0, 0, 1, 4),
            num_heads=(1, 1, 2, 4),
            latent_widening=2,
            pool_side=4,
            input_size=32,
            num_classes=10,
        ),
        "exit_macs": (1_097_920, 5_283_104, 6_670_944, 6_918_784),
        "bytes_held": 6_600,
    },
    source=Source(paper=_PAPER, licence="Apache-2.0"),
    weights=CHECKPOINTS / "dyn-perceiver-nano",
    is_nano=True,
    is_default=True,
)


def work(variant: Variant, request: object, point: Point) -> Work:
    """Of one picture, to the deepest exit that it may reach: where it leaves is known once it has run."""
    macs = variant.config["exit_macs"][deepest_exit(point, NUM_EXITS)]
    return Work({"macs": macs}, bytes_held=variant.config["bytes_held"])


_HERE = "models.families.dyn_perceiver"
_TRAINING = "models.training.dyn_perceiver"

FAMILY = Family(
    name="dyn-perceiver",
    summary="image classifier with four exits: a sample that is sure early leaves early",
    tasks=("classify", "infer"),
    shape="staged",
    variants=(
        _NANO,
        _published(
            "regnety-800mf",
            "ImageNet-1k, RegNetY-800MF with 128 latents",
            DynPerceiverConfig(
                backbone=RegNetConfig(stem_width=32, widths=(64, 144, 320, 784), depths=(1, 3, 8, 2), group_width=16),
                num_latents=128,
                latent_depths=(3, 3, 9, 6),
            ),
            (68.62, 78.32, 79.15, 79.86),
            (457_938_048, 1_063_488_896, 1_227_589_504, 1_298_256_512),
            490_016,
        ),
        _published(
            "resnet50-x0375",
            "ImageNet-1k, ResNet-50 at 0.375, 128 latents",
            DynPerceiverConfig(backbone=ResNetConfig(width=0.375), num_latents=128, latent_depths=(3, 3, 9, 3)),
            (72.93, 77.52, 74.32, 77.70),
            (619_347_072, 1_007_320_704, 1_121_887_872, 1_190_166_144),
            646_688,
        ),
        _published(
            "mobilenetv3-x075",
            "ImageNet-1k, MobileNetV3-L at 0.75, 128 latents",
            DynPerceiverConfig(backbone=MobileNetV3Config(width=0.75), num_latents=128, latent_depths=(3, 3, 9, 9)),
            (53.13, 71.65, 71.89, 74.59),
            (97_277_920, 181_323_296, 206_436_416, 266_078_336),
            168_800,
        ),
    ),
    prepare=LazyRef("models.pictures:SquarePicture"),
    build=LazyRef(f"{_HERE}.load:load_model"),
    runner=LazyRef(f"{_HERE}.runner:DynPerceiverRunner"),
    oracle=LazyRef(f"{_HERE}.oracle:compare"),
    work=LazyRef(f"{_HERE}.family:work"),
    knobs=exit_knobs(NUM_EXITS),
    parts={
        "convert": LazyRef(f"{_HERE}.load:convert"),
        "train": LazyRef(f"{_TRAINING}.train:train_variant"),
        "held_out": LazyRef(f"{_TRAINING}.evaluation:calibration_sets"),
        "card": LazyRef(f"{_TRAINING}.card:write_card"),
    },
)
