"""What goes into a variant and what comes out of it: the sizes and ranges that its checkpoint was made for.

Plain data, free of torch. A request that does not fit is refused by name: outside of them a checkpoint gives noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

from models.contract import Family, Knob, Point, SettingError, Variant, Work

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output of a unary or staged family. ``datatype``: as the Open Inference Protocol spells it. ``shape``: of one
    row, with -1 for what the request decides."""

    name: str
    datatype: Literal["UINT8", "INT32", "INT64", "FP32"]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureIO:
    """A square picture in; scores of classes out, or other tensors.

    ``input_size``: side S of the square in pixels. ``resize_size``: length that the shorter side (``fit="crop"``) or
    the longer side (``fit="pad"``) is brought to before the square is cut out or filled up; ``squash`` brings both
    there before the square is cut out. ``mean`` and ``std`` apply to RGB scaled to 0..1. ``labels``: None where the
    names are not ours to ship. ``outputs``: of a family that does not classify (``num_classes`` is 0 then); a
    classifier gives ``probabilities``.

    Raises: ValueError: not one label per class, or neither classes nor outputs.
    """

    input_size: int
    num_classes: int = 0
    outputs: tuple[Tensor, ...] = ()
    num_exits: int = 1
    labels: tuple[str, ...] | None = None
    resize_size: int
    fit: Literal["crop", "pad", "squash"] = "crop"
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    takes_picture: ClassVar[bool] = True
    takes_prompt: ClassVar[bool] = False
    is_seeded: ClassVar[bool] = False
    size: ClassVar[None] = None
    largest: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes; give one per class")
        if not self.num_classes and not self.outputs:
            raise ValueError("neither num_classes nor outputs are given; say what comes out")
        if not self.outputs:
            object.__setattr__(self, "outputs", (Tensor("probabilities", "FP32", (self.num_classes,)),))

    def label(self, index: int) -> str:
        """Name of class ``index``; ``class-<index>`` where the names are unknown."""
        return self.labels[index] if self.labels is not None else f"class-{index}"

    @property
    def facts(self) -> dict[str, Any]:
        """What a client wants to know of it, ready for JSON. So has each of the others."""
        return {
            "inputs": ["image"],
            "outputs": [output.name for output in self.outputs],
            "input_size": self.input_size,
            "num_classes": self.num_classes,
            "num_exits": self.num_exits,
            "labels": [self.label(index) for index in range(self.num_classes)],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """What pictures cost depends on this: width and height, of what goes in where a picture does, and how many they
    are. A job's ``open`` is given it, with the prompt; picture number r, from 0, has the seed of the job plus r."""

    width: int
    height: int
    prompt: str = ""
    negative_prompt: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageIO:
    """A prompt, a picture or both in, a picture out: the output ``image``, uint8 (height, width, 3).

    ``is_seeded``: noise is drawn, and the seed goes in. ``size``: width and height of what comes out of words alone;
    a job may be asked for others, if ``max_side`` is given. A picture that goes in, or that is asked for, has sides
    between ``min_side`` and ``max_side`` that are multiples of ``multiple``. One that goes in comes out ``scale`` times
    as large; nobody crops or pads it on the way. ``takes_negative_prompt``: jobs alone can. ``example``: a prompt that
    the model takes, if it takes any.

    Raises: ValueError: nothing goes in, there is not one way to know the size, or sides that no picture has.
    """

    request: ClassVar[type[ImageRequest]] = ImageRequest
    """What a job's ``open`` is given, as it is kept in the job's record."""
    takes_prompt: bool = False
    takes_picture: bool = False
    takes_negative_prompt: bool = False
    is_seeded: bool = False
    size: tuple[int, int] | None = None
    min_side: int = 1
    max_side: int = 0
    multiple: int = 1
    scale: int = 1
    max_prompt_chars: int = 2000
    example: str = "a red ball"
    num_exits: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not (self.takes_prompt or self.takes_picture):
            raise ValueError("neither a prompt nor a picture goes in; say which")
        if (self.takes_picture or self.max_side) and not 1 <= self.min_side <= self.max_side:
            raise ValueError(f"sides of {self.min_side} to {self.max_side} pixels are impossible")
        if self.max_side and (self.min_side % self.multiple or self.max_side % self.multiple):
            raise ValueError(f"min_side and max_side must be multiples of {self.multiple}")
        if self.takes_picture == (self.size is not None):
            raise ValueError("size is of what comes out of words alone, and there it is needed")

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The picture."""
        width, height = self.size if self.size and not self.max_side else (-1, -1)
        return (Tensor("image", "UINT8", (height, width, 3)),)

    @property
    def usual(self) -> ImageRequest:
        """What is asked for as a rule."""
        return ImageRequest(width=self.size[0], height=self.size[1]) if self.size else self.largest

    @property
    def largest(self) -> ImageRequest:
        """The dearest request."""
        width, height = self.size if self.size and not self.max_side else (self.max_side, self.max_side)
        return ImageRequest(width=width, height=height)

    def request_of(self, inputs: Any) -> ImageRequest:
        """What a row costs depends on its picture, if it has one."""
        picture = inputs.get("picture") if isinstance(inputs, Mapping) else inputs
        if picture is None:
            return self.largest
        height, width = picture.shape[:2]
        return ImageRequest(width=width, height=height)

    @property
    def facts(self) -> dict[str, Any]:
        """What a client wants to know of it, ready for JSON."""
        sides = {"min_side": self.min_side, "max_side": self.max_side, "multiple": self.multiple, "scale": self.scale}
        return {
            "inputs": ["text"] * self.takes_prompt + ["image"] * self.takes_picture,
            "outputs": ["image"],
            "is_seeded": self.is_seeded,
            **({"example": self.example} if self.takes_prompt else {}),
            **({"takes_negative_prompt": True} if self.takes_negative_prompt else {}),
            **({"sizes": [f"{self.size[0]}x{self.size[1]}"]} if self.size else {}),
            **(sides if self.max_side else {}),
        }

    def check_picture(self, width: int, height: int) -> None:
        """Pass the size of a picture that goes in. Raises: ValueError: not one that the network takes."""
        if not self.takes_picture:
            raise ValueError("this model takes no picture")
        self._check_sides("picture", width, height)

    def check_size(self, width: int, height: int) -> None:
        """Pass the size of a picture that is asked for. Raises: ValueError: not one that the network makes."""
        if self.max_side:
            self._check_sides("size", width, height)
        elif (width, height) != self.size:
            raise ValueError(f"size is {width}x{height}; this model makes {self.outputs[0].shape}")

    def _check_sides(self, what: str, width: int, height: int) -> None:
        for side in (width, height):
            if not self.min_side <= side <= self.max_side or side % self.multiple:
                step = f", in steps of {self.multiple}" if self.multiple > 1 else ""
                raise ValueError(
                    f"{what} is {width}x{height}; this model takes sides of {self.min_side} to {self.max_side} "
                    f"pixels{step}"
                )


RowIO: TypeAlias = PictureIO | ImageIO
"""Of a unary or staged family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatIO:
    """Text and tiled images in, text out.

    ``tile_size``: side of a tile in pixels; 0 where a picture stays whole, as one tile of any size. ``max_tiles``
    bounds rows x columns of an image's grid, without the thumbnail, which an image of several tiles has besides;
    ``max_tiles_side`` bounds either. ``tokens_per_tile`` reach the language model, at most where a picture stays whole.
    ``max_model_len``: the default for tokens of prompt and answer together.
    ``kv_values_per_token``: numbers that the language model keeps of a token, keys and values of all its layers.

    Raises: ValueError: one image of the largest grid does not fit into ``max_model_len``, or a bound is not positive.
    """

    tile_size: int
    max_tiles: int
    max_tiles_side: int
    tokens_per_tile: int
    max_model_len: int
    kv_values_per_token: int

    def __post_init__(self) -> None:
        bounds = (self.tokens_per_tile, self.max_tiles, self.max_tiles_side, self.kv_values_per_token)
        if min(bounds) < 1 or self.tile_size < 0:
            raise ValueError(f"{self} is impossible; every bound must be at least 1")
        if self.max_image_tokens >= self.max_model_len:
            raise ValueError(
                f"one image may have {self.max_image_tokens} tokens and max_model_len is {self.max_model_len}; raise "
                "it, or lower max_tiles"
            )

    @property
    def max_image_tokens(self) -> int:
        """Tokens of an image of the largest grid, with its thumbnail."""
        return (self.max_tiles + (self.max_tiles > 1)) * self.tokens_per_tile

    @property
    def facts(self) -> dict[str, Any]:
        """What a client wants to know of it, ready for JSON."""
        return {"inputs": ["text", "image"], "outputs": ["text"]}


MAX_TILES = "max_tiles"
"""Name of the one knob that a stream family may have for a request: ``ChatIO.max_tiles``, lowered."""
MAX_TOKENS = "max_tokens"
"""The other axis of a chat's operating points: the cap on its answer. OpenAI's field, no knob."""


def knobs_of(family: Family, variant: Variant) -> tuple[Knob, ...]:
    """The knobs of a variant: with its defaults, and of a picture's tiles no more than its checkpoint was made for."""
    family = family.of(variant)
    if not isinstance(variant.io, ChatIO):
        return family.knobs
    most = variant.io.max_tiles
    return tuple(
        knob
        if knob.name != MAX_TILES
        else replace(knob, default=most, high=most, grid=(*(value for value in knob.grid if int(value) < most), most))
        for knob in family.knobs
    )


def with_max_tiles(variant: Variant, max_tiles: int | None) -> Variant:
    """The variant that ``prepare`` and ``tiles`` get for a request that has this setting; None: it has none."""
    if max_tiles is None:
        return variant
    return replace(variant, io=replace(variant.io, max_tiles=min(max_tiles, variant.io.max_tiles)))


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """What one answer costs depends on these: tokens of the prompt's text and of its images, and most of the answer."""

    text_tokens: int
    image_tokens: int
    max_tokens: int


def chat_work(variant: Variant, request: ChatTokens, point: Point) -> Work:
    """Of one answer, for every family that vLLM runs: pictures are encoded, the prompt is read, tokens are written, and
    each looks at all before it. Bytes: its share of the KV cache, in float32."""
    prompt = request.text_tokens + request.image_tokens
    units = {
        "image_tokens": request.image_tokens,
        "prompt_tokens": prompt,
        "output_tokens": request.max_tokens,
        "token_steps": request.max_tokens * (prompt + request.max_tokens / 2),
    }
    return Work(units, 4 * variant.io.kv_values_per_token * (prompt + request.max_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerRange:
    """Numbers of steps that a sampler takes with one set of weights of the variant, of which the first sampler's are
    always there. ``multiple``: of what they must be one.
    ``is_guided``: whether guidance is left to the caller; a student that was distilled with it has it in its weights.
    """

    weights: str
    min_steps: int
    max_steps: int
    default_steps: int
    multiple: int = 1
    is_guided: bool = True

    def takes(self, num_steps: int) -> bool:
        """Whether it can be run in so many steps."""
        return self.min_steps <= num_steps <= self.max_steps and num_steps % self.multiple == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRequest:
    """What a clip shall show, its length and its size; 0: the usual ones of the model. ``picture``: the first frame, as
    PNG of exactly that size; empty where none goes in."""

    prompt: str = ""
    negative_prompt: str = ""
    num_frames: int = 0
    width: int = 0
    height: int = 0
    fps: int = 0
    picture: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipIO:
    """A prompt, a first frame or both in, a clip out. One frame at a time where ``frame_counts`` is (1,): a picture.

    ``takes_picture``: a clip begins with a picture; with ``picture_is_optional`` it may also be made of words alone.
    ``width``, ``height``: the usual size; ``sizes``: further ones; ``max_side``: if given, all sides between
    ``min_side`` and it that are multiples of ``multiple`` are taken, if a frame has no more than ``max_pixels``.
    ``frame_counts``: lengths that the checkpoint was trained on, the usual one first; ``max_frames``: if given, all
    lengths up to it that the autoencoder can have are taken. ``samplers`` by name, the default first; a family without
    a knob ``sampler`` has one. ``scale_factor``: of latents, None where the autoencoder's own configuration says it.

    Raises: ValueError: nothing goes in, or a length or a size that the autoencoder cannot have.
    """

    request: ClassVar[type[ClipRequest]] = ClipRequest
    """What a job's ``open`` is given, as it is kept in the job's record."""
    takes_prompt: bool = True
    takes_picture: bool = False
    picture_is_optional: bool = False
    width: int
    height: int
    sizes: tuple[tuple[int, int], ...] = ()
    min_side: int = 1
    max_side: int = 0
    max_pixels: int = 0
    multiple: int = 1
    frame_counts: tuple[int, ...]
    max_frames: int = 0
    fps: int
    samplers: Mapping[str, SamplerRange]
    default_guidance: float
    max_guidance: float = 20.0
    max_prompt_chars: int = 2000
    max_text_tokens: int = 512
    example: str = "a red circle moves left"
    latent_channels: int = 4
    vae_stride: tuple[int, int, int] = (4, 8, 8)
    patch: tuple[int, int, int] = (1, 2, 2)
    scale_factor: float | None = None
    interpolation_scales: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if not (self.takes_prompt or self.takes_picture):
            raise ValueError("neither a prompt nor a picture goes in; say which")
        if self.picture_is_optional and not (self.takes_prompt and self.takes_picture):
            raise ValueError("a picture is optional where a prompt and a picture go in")
        for frames in self.frame_counts:
            for size in ((self.width, self.height), *self.sizes):
                self.grid(frames, size)

    @property
    def usual(self) -> ClipRequest:
        """What is asked for as a rule."""
        return self.settled(ClipRequest())

    @property
    def needs_picture(self) -> bool:
        """Whether no clip can be made without one."""
        return self.takes_picture and not self.picture_is_optional

    def settled(self, request: ClipRequest) -> ClipRequest:
        """The request with the usual length, size and rate where it leaves them open."""
        size = (request.width, request.height) if request.width else (self.width, self.height)
        return replace(
            request,
            num_frames=request.num_frames or self.frame_counts[0],
            width=size[0],
            height=size[1],
            fps=request.fps or self.fps,
        )

    def check_frames(self, frames: int) -> None:
        """Pass a length. Raises: SettingError: not one that this checkpoint does."""
        step = self.vae_stride[0]
        if frames in self.frame_counts or (1 <= frames <= self.max_frames and (frames - 1) % step == 0):
            return
        if self.max_frames:
            which = f" that are 1 more than a multiple of {step}" if step > 1 else ""
            raise SettingError("num_frames", f"num_frames is {frames}; this model makes 1 to {self.max_frames}{which}")
        allowed = ", ".join(map(str, self.frame_counts))
        raise SettingError(
            "num_frames", f"num_frames is {frames}; this checkpoint was trained on {allowed}, and others give noise"
        )

    def check_size(self, width: int, height: int) -> None:
        """Pass a size. Raises: SettingError: not one that this checkpoint does."""
        listed = ((self.width, self.height), *self.sizes)
        if (width, height) in listed:
            return
        if not self.max_side:
            names = ", ".join(f"{one}x{other}" for one, other in listed)
            raise SettingError("size", f"size is {width}x{height}; this model does {names}")
        if any(not self.min_side <= side <= self.max_side or side % self.multiple for side in (width, height)):
            raise SettingError(
                "size",
                f"size is {width}x{height}; this model takes sides of {self.min_side} to {self.max_side} pixels, in "
                f"steps of {self.multiple}",
            )
        if self.max_pixels and width * height > self.max_pixels:
            raise SettingError("size", f"size is {width}x{height}; a frame has at most {self.max_pixels} pixels")

    def grid(self, frames: int, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Patches of a clip: latent frames, rows, columns. ``size``: width and height; None: the usual ones.

        Raises: SettingError: not a length or a size that this checkpoint does.
        """
        self.check_frames(frames)
        width, height = size or (self.width, self.height)
        self.check_size(width, height)
        t, h, w = self.vae_stride
        if (frames - 1) % t or height % (h * self.patch[1]) or width % (w * self.patch[2]):
            raise ValueError(f"{frames} frames of {width}x{height} do not fit strides {t}x{h}x{w}")
        return (frames - 1) // t + 1, height // (h * self.patch[1]), width // (w * self.patch[2])

    @property
    def facts(self) -> dict[str, Any]:
        """What a client wants to know of it, ready for JSON."""
        sides = {"min_side": self.min_side, "max_side": self.max_side, "multiple": self.multiple}
        return {
            "inputs": ["text"] * self.takes_prompt + ["image"] * self.takes_picture,
            **({"optional_inputs": ["image"]} if self.picture_is_optional else {}),
            "outputs": ["video"],
            "sizes": [f"{width}x{height}" for width, height in ((self.width, self.height), *self.sizes)],
            **(sides if self.max_side else {}),
            "num_frames": list(self.frame_counts),
            **({"max_frames": self.max_frames, "frame_step": self.vae_stride[0]} if self.max_frames else {}),
            "fps": self.fps,
            **({"example": self.example} if self.takes_prompt else {}),
            "samplers": {
                name: {"min_steps": made.min_steps, "max_steps": made.max_steps, "multiple": made.multiple}
                for name, made in self.samplers.items()
            },
        }

    def num_tokens(self, frames: int, size: tuple[int, int] | None = None) -> int:
        """Tokens of a clip in the transformer. Raises: SettingError: not what this checkpoint does."""
        t, h, w = self.grid(frames, size)
        return t * h * w

    def check_sampler(self, name: str, num_steps: int) -> SamplerRange:
        """Pass a sampler and its number of steps.

        Raises: SettingError: not one that this checkpoint was made for; the message names those that are.
        """
        if name not in self.samplers:
            raise SettingError("sampler", f"sampler is {name!r}; this model does {', '.join(self.samplers)}")
        steps = self.samplers[name]
        if not steps.takes(num_steps):
            of = f", a multiple of {steps.multiple}" if steps.multiple > 1 else ""
            raise SettingError(
                "num_inference_steps",
                f"num_inference_steps is {num_steps}; {name} takes {steps.min_steps} to {steps.max_steps}{of}",
            )
        return steps
