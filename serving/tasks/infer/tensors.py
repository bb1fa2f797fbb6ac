"""Open Inference Protocol tensors to rows and back, for HTTP and gRPC alike. No protocol types in here.

Inputs, as the model's card says what goes in; of IMAGE and PIXELS exactly one:
    IMAGE   BYTES,          [N] or [N, 1]   encoded JPEG, PNG or WebP files
    PIXELS  UINT8 or FP32,  [N, H, W, 3]    RGB; FP32 is between 0 and 1 and is rounded to 8 bits
    PROMPT  BYTES,          [N] or [N, 1]   UTF-8
    SEED    INT64,          [N] or [N, 1]   0 or more; drawn where it is left out
Outputs, all that the model has unless some are asked for (k: the most classes that any image got):
    of a classifier   LABEL BYTES [N], SCORE FP32 [N], EXIT INT32 [N], TOP_LABELS BYTES [N, k], TOP_SCORES FP32 [N, k]
    of any other      those that its card names, [N, ...]
    of all            ERROR BYTES [N]   empty for a row that was answered, the error as a JSON object otherwise
A row without an answer has an empty label, and zeros. A model without early exits has no EXIT. SCORE and TOP_SCORES may
be asked for as text (``Wanted``).

Sizes are computed in Python integers and compared with the bytes at hand before anything is allocated. Raw bytes are
little-endian; each BYTES element follows its length in four bytes. Source: Open Inference Protocol v2, "Tensor Data".
"""

from __future__ import annotations

import asyncio
import math
import secrets
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import orjson

from models.inputs import Array
from models.io import PictureIO
from serving.domain import (
    Budget,
    Classification,
    ClassifyReply,
    ClassifyRequest,
    ImageInput,
    Pixels,
    Surface,
    UnaryAnswer,
    UnaryReply,
    UnaryRequest,
)
from serving.errors import InvalidImage, InvalidRequest, ServingError, UnknownField
from serving.front.front import BaseCall, check_unicode, shown
from serving.front.http.json_decode import Numbers, number_array
from serving.front.images import images_from_text
from serving.front.status import error_object
from serving.limits import MAX_TYPED_ELEMENTS, IngressLimits
from serving.service import Card
from serving.tasks.classification import check_num_images, check_top_k, reply_to
from serving.tasks.infer.schemas import MAX_DIM

QUANTISE_HERE_BYTES = 1 << 20
"""Larger float images are rounded in a thread (numpy lets go of the interpreter), about 0.3 ms per megabyte."""

_TYPES: Final = {"i": int, "f": float}

Element: TypeAlias = bytes | float | int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """A tensor as received. ``raw`` are its little-endian bytes; else ``values`` are its elements, flat or nested.

    Those of a BYTES tensor are bytes (gRPC), or base64 text or data: URLs (JSON). Long lists of JSON numbers come as
    ``Numbers``.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview | None = None
    values: Sequence[Any] | Numbers | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """A tensor to send; ``values`` are flat and row-major."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Element, ...] | Array

    def to_raw(self) -> bytes:
        """Return the little-endian bytes."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(_DTYPES[self.datatype], copy=False).tobytes()
        if self.datatype == "BYTES":
            return b"".join(struct.pack("<I", len(value)) + value for value in self.values)  # type: ignore[arg-type, operator]
        return struct.pack(f"<{len(self.values)}{'f' if self.datatype == 'FP32' else 'i'}", *self.values)


TensorForm: TypeAlias = tuple[str, str, tuple[int, ...]]
"""(name, datatype, shape) as model metadata give them; -1 is a free dimension."""
_CLASSES: Final[tuple[TensorForm, ...]] = (
    ("LABEL", "BYTES", (-1,)),
    ("SCORE", "FP32", (-1,)),
    ("EXIT", "INT32", (-1,)),
    ("TOP_LABELS", "BYTES", (-1, -1)),
    ("TOP_SCORES", "FP32", (-1, -1)),
)
_ERROR: Final[TensorForm] = ("ERROR", "BYTES", (-1,))
_DTYPES: Final = {"UINT8": "<u1", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}
_DATATYPES: Final[dict[str, tuple[str, ...]]] = {"PIXELS": ("UINT8", "FP32"), "SEED": ("INT64",)}
"""Of the inputs that are not BYTES."""
MAX_SEED: Final = (1 << 63) - 1


def has_tensors(card: Card) -> bool:
    """Whether a model answers in one call, with tensors."""
    return card.shape in ("unary", "staged")


def inputs_of(card: Card) -> tuple[TensorForm, ...]:
    """The inputs that a model takes, of the first two either; none where it does not answer with tensors."""
    if not has_tensors(card):
        return ()
    pictures: tuple[TensorForm, ...] = (("IMAGE", "BYTES", (-1,)), ("PIXELS", "UINT8", (-1, -1, -1, 3)))
    return (
        *(pictures if card.io.takes_picture else ()),
        *((("PROMPT", "BYTES", (-1,)),) if card.io.takes_prompt else ()),
        *((("SEED", "INT64", (-1,)),) if card.io.is_seeded else ()),
    )


def outputs_of(card: Card) -> tuple[TensorForm, ...]:
    """The outputs that a model has: ``EXIT`` only where it has early exits."""
    if not has_tensors(card):
        return ()
    if isinstance(card.io, PictureIO) and "classify" in card.tasks:
        return (*(form for form in _CLASSES if form[0] != "EXIT" or card.io.num_exits > 1), _ERROR)
    return (*((each.name, each.datatype, (-1, *each.shape)) for each in card.io.outputs), _ERROR)


async def request_from_tensors(
    tensors: Sequence[InputTensor], card: Card, top_k: int, limits: IngressLimits, common: CallFacts
) -> UnaryRequest:
    """Return the request; a broken image becomes an ``ImageInput`` with an error.

    Raises: InvalidRequest, UnknownField, TooManyImages: the tensors themselves are wrong.
    """
    by_name = _by_name(tensors, card)
    for tensor in by_name.values():
        _check_shape(tensor, limits)
    images: tuple[ImageInput, ...] = ()
    if (encoded := by_name.get("IMAGE")) is not None:
        images = await _encoded(encoded)
    elif (pixels := by_name.get("PIXELS")) is not None:
        images = await _pixels(pixels)
    if "classify" in card.tasks:
        return ClassifyRequest(images=images, top_k=top_k, **common)
    prompts = _prompts(by_name["PROMPT"]) if "PROMPT" in by_name else ()
    sent = _seeds(by_name["SEED"]) if "SEED" in by_name else ()
    drawn = draw_seeds(max(len(images), len(prompts))) if card.io.is_seeded and not sent else ()
    return UnaryRequest(images=images, prompts=prompts, seeds=sent or drawn, is_drawn=bool(drawn), **common)


class CallFacts(TypedDict):
    """Of a request, whatever is in it."""

    request_id: str
    surface: Surface
    tenant: str
    model: str
    budget: Budget
    deadline_s: float | None


def draw_seeds(count: int) -> tuple[int, ...]:
    """For rows whose caller has no wish."""
    return tuple(secrets.randbelow(1 << 32) for _ in range(count))


async def reply_to_tensors(call: BaseCall, request: UnaryRequest) -> ClassifyReply | UnaryReply:
    """Have a request answered, of a classifier as classes. Raises: ServingError."""
    if isinstance(request, ClassifyRequest):
        return await reply_to(call, request)
    unary = call.front.service.unary
    reply = await unary.answer(call.front.admit(request, unary.models(), call.visit))
    call.note_outcome(reply.items)
    return reply


def _by_name(tensors: Sequence[InputTensor], card: Card) -> dict[str, InputTensor]:
    known = [name for name, _, _ in inputs_of(card)]
    wanted = [" or ".join(name for name in known if name in _PICTURES), *(name for name in known if name in _WORDS)]
    told = " and ".join(filter(None, wanted))
    by_name = {tensor.name: tensor for tensor in tensors}
    if unknown := [tensor.name for tensor in tensors if tensor.name not in known]:
        raise UnknownField(f"input {shown(unknown[0])} is unknown; send {told}", param="inputs")
    num_pictures = sum(name in _PICTURES for name in by_name)
    if (
        len(by_name) < len(tensors)
        or num_pictures != card.io.takes_picture
        or card.io.takes_prompt > ("PROMPT" in by_name)
    ):
        names = ", ".join(tensor.name for tensor in tensors[:8]) or "none"
        raise InvalidRequest(f"inputs are {len(tensors)} ({names}); send exactly one of {told}", param="inputs")
    return by_name


_PICTURES: Final = ("IMAGE", "PIXELS")
_WORDS: Final = ("PROMPT", "SEED")


def _check_shape(tensor: InputTensor, limits: IngressLimits) -> None:
    allowed = _DATATYPES.get(tensor.name, ("BYTES",))
    if tensor.datatype not in allowed:
        raise InvalidRequest(
            f"{tensor.name} has datatype {shown(tensor.datatype)}; send {' or '.join(allowed)}", param=tensor.name
        )
    shape = tensor.shape
    if any(not 0 < dim <= MAX_DIM for dim in shape):
        raise InvalidRequest(
            f"{tensor.name} has shape {_shape(shape)}; each dimension must be between 1 and {MAX_DIM}",
            param=tensor.name,
        )
    if tensor.name != "PIXELS" and not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise InvalidRequest(f"{tensor.name} has shape {_shape(shape)}; send [N] or [N, 1]", param=tensor.name)
    if tensor.name == "PIXELS" and not (len(shape) == 4 and shape[3] == 3):
        raise InvalidRequest(f"PIXELS has shape {_shape(shape)}; send [N, height, width, 3]", param="PIXELS")
    check_num_images(shape[0], limits, tensor.name)
    if (tensor.raw is None) == (tensor.values is None):
        which = "no elements" if tensor.raw is None else "both raw and typed elements"
        raise InvalidRequest(f"{tensor.name} has {which}; send one of the two", param=tensor.name)


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(shown(dim) for dim in shape[:8]) + "]"


async def _encoded(tensor: InputTensor) -> tuple[ImageInput, ...]:
    if tensor.raw is not None:
        elements: Sequence[Any] = _split(tensor)
    else:
        elements = _flat(tensor, {str, bytes})
    if elements and isinstance(elements[0], str):
        return await images_from_text(elements, "IMAGE.{}")
    return tuple(ImageInput(encoded=element) for element in elements)


def _split(tensor: InputTensor) -> list[bytes]:
    """Cut length-prefixed elements apart."""
    assert tensor.raw is not None
    name, raw, num_elements = tensor.name, tensor.raw, tensor.shape[0]
    elements, position = [], 0
    for index in range(num_elements):
        if position + 4 > len(raw):
            raise InvalidRequest(
                f"{name} has {index} elements in {len(raw)} bytes; its shape says {num_elements}", param=name
            )
        (length,) = struct.unpack_from("<I", raw, position)
        position += 4
        if length > len(raw) - position:
            raise InvalidRequest(
                f"{name} element {index} claims {length} bytes; only {len(raw) - position} are left. "
                "Each element needs its length before it, in four little-endian bytes",
                param=name,
            )
        elements.append(bytes(raw[position : position + length]))
        position += length
    if position != len(raw):
        raise InvalidRequest(
            f"{name} has {len(raw) - position} bytes after its {num_elements} elements; correct its shape", param=name
        )
    return elements


def _prompts(tensor: InputTensor) -> tuple[str, ...]:
    elements = _split(tensor) if tensor.raw is not None else _flat(tensor, {str, bytes})
    try:
        prompts = tuple(each if isinstance(each, str) else each.decode() for each in elements)
    except UnicodeDecodeError:
        raise InvalidRequest("PROMPT is not valid UTF-8; encode it so", param="PROMPT") from None
    for prompt in prompts:
        check_unicode(prompt, "PROMPT")
    return prompts


def _seeds(tensor: InputTensor) -> tuple[int, ...]:
    seeds = tuple(map(int, _array(tensor)))
    if any(seed < 0 for seed in seeds):
        raise InvalidRequest(f"SEED has {min(seeds)}; send 0 or more", param="SEED")
    return seeds


def _flat(tensor: InputTensor, types: set[type]) -> list[Any]:
    """Flatten typed elements and check their number and Python types. ``bool`` is no number here."""
    if isinstance(tensor.values, Numbers):
        raise _wrong_type(tensor, [_TYPES[tensor.values.array.dtype.kind]])
    sent = tensor.values or ()
    _check_count(tensor, max(math.prod(tensor.shape), len(sent)))
    values = list(sent)
    for _ in tensor.shape[1:]:
        if not values or not all(isinstance(value, list) for value in values):
            break
        values = list(chain.from_iterable(values))
    _check_product(tensor, len(values))
    found = set(map(type, values))
    if not found <= types or len(found & {str, bytes}) > 1:
        raise _wrong_type(tensor, found - types)
    return values


def _check_count(tensor: InputTensor, num_elements: int) -> None:
    if num_elements > MAX_TYPED_ELEMENTS:
        raise InvalidRequest(
            f"{tensor.name} has {num_elements} typed elements; the limit is {MAX_TYPED_ELEMENTS}. Send it as raw bytes",
            param=tensor.name,
        )


def _check_product(tensor: InputTensor, num_elements: int) -> None:
    expected = math.prod(tensor.shape)
    if num_elements != expected:
        raise InvalidRequest(
            f"{tensor.name} has {num_elements} elements; its shape {_shape(tensor.shape)} says {expected}",
            param=tensor.name,
        )


def _wrong_type(tensor: InputTensor, found: Iterable[type]) -> InvalidRequest:
    names = ", ".join(sorted(kind.__name__ for kind in found))
    return InvalidRequest(f"{tensor.name} has elements of type {names}; send {tensor.datatype}", param=tensor.name)


async def _pixels(tensor: InputTensor) -> tuple[ImageInput, ...]:
    array = _array(tensor).reshape(tensor.shape)
    if tensor.datatype == "UINT8":
        return tuple(ImageInput(pixels=image) for image in array)
    if array.nbytes <= QUANTISE_HERE_BYTES:
        return _quantise_all(array)
    return await asyncio.to_thread(_quantise_all, array)


def _quantise_all(array: npt.NDArray[np.float32]) -> tuple[ImageInput, ...]:
    return tuple(_quantise(image, index) for index, image in enumerate(array))


def _array(tensor: InputTensor) -> Array:
    """Return the flat elements, read-only where they are the caller's bytes."""
    name, dtype = tensor.name, np.dtype(_DTYPES[tensor.datatype])
    if tensor.raw is not None:
        expected = math.prod(tensor.shape) * dtype.itemsize
        if len(tensor.raw) != expected:
            raise InvalidRequest(
                f"{name} has {len(tensor.raw)} bytes; {tensor.datatype} {_shape(tensor.shape)} takes {expected}",
                param=name,
            )
        return np.frombuffer(tensor.raw, dtype)
    values = _numbers(tensor)
    if tensor.datatype == "FP32":
        with np.errstate(over="ignore"):
            return values.astype(np.float32)
    if values.dtype.kind != "i":
        raise _wrong_type(tensor, [float])
    most = np.iinfo(dtype).max
    if values.min() < 0 or values.max() > most:
        raise InvalidRequest(
            f"{name} has elements between {values.min()} and {values.max()}; {tensor.datatype} goes from 0 to {most}",
            param=name,
        )
    return values.astype(dtype)


def _numbers(tensor: InputTensor) -> Array:
    """Typed elements, flat: int64 where all are integers, float64 otherwise."""
    sent = tensor.values
    if isinstance(sent, Numbers):
        _check_count(tensor, max(math.prod(tensor.shape), len(sent)))
        if sent.levels > len(tensor.shape):
            raise _wrong_type(tensor, [list])
        _check_product(tensor, len(sent))
        return sent.array
    return number_array(_flat(tensor, {float, int} if tensor.datatype == "FP32" else {int}))


def _quantise(image: npt.NDArray[np.float32], index: int) -> ImageInput:
    """Round to 8 bits, the form in which images are cached and compared everywhere behind the ingress."""
    low, high = float(image.min()), float(image.max())
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0.0 and high <= 1.0):
        return ImageInput(
            error=InvalidImage(
                f"PIXELS of image {index} go from {low:g} to {high:g}; FP32 pixels must be finite, from 0 to 1",
                param="PIXELS",
            )
        )
    pixels: Pixels = np.rint(image * np.float32(255.0)).astype(np.uint8)
    return ImageInput(pixels=pixels)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for. ``num_classes``: not 0 asks for that many of the best classes as text, as Triton's
    classification extension has it."""

    name: str
    num_classes: int = 0


def outputs_from_reply(
    reply: ClassifyReply | UnaryReply, card: Card, wanted: Sequence[Wanted]
) -> tuple[OutputTensor, ...]:
    """Return the tensors of ``wanted`` (``chosen_outputs``), in that order.

    Raises: InvalidRequest: rows of different shapes, which are no tensor.
    """
    if isinstance(reply, ClassifyReply):
        found = _classes(reply)
    else:
        names = {one.name for one in wanted}
        found = {each.name: _gathered(each.name, reply) for each in card.io.outputs if each.name in names}
    errors = tuple(orjson.dumps(error_object(item)) if isinstance(item, ServingError) else b"" for item in reply.items)
    found["ERROR"] = ((len(errors),), errors)
    datatypes = {name: datatype for name, datatype, _ in outputs_of(card)}
    tensors = []
    for one in wanted:
        if one.num_classes and isinstance(reply, ClassifyReply):
            shape, values = _class_texts(reply, one.num_classes)
            tensors.append(OutputTensor(name=one.name, datatype="BYTES", shape=shape, values=values))
        else:
            shape, values = found[one.name]
            tensors.append(OutputTensor(name=one.name, datatype=datatypes[one.name], shape=shape, values=values))
    return tuple(tensors)


_Column: TypeAlias = tuple[tuple[int, ...], "tuple[Element, ...] | Array"]


def _gathered(name: str, reply: UnaryReply) -> _Column:
    rows = [item.outputs[name] if isinstance(item, UnaryAnswer) else None for item in reply.items]
    shapes = {row.shape for row in rows if row is not None}
    if len(shapes) > 1:
        listed = " and ".join(map(_shape, sorted(shapes)))
        raise InvalidRequest(
            f"rows of {name} have shapes {listed}, which do not fit into one tensor; send them apart", param="inputs"
        )
    first = next(row for row in rows if row is not None)
    stacked = np.stack([np.zeros_like(first) if row is None else row for row in rows])
    return stacked.shape, stacked.reshape(-1)


def _classes(reply: ClassifyReply) -> dict[str, _Column]:
    answers = [item if isinstance(item, Classification) else None for item in reply.items]
    n = len(answers)
    k = max((len(answer.top_k) for answer in answers if answer), default=1)
    return {
        "LABEL": ((n,), tuple(answer.label.encode() if answer else b"" for answer in answers)),
        "SCORE": ((n,), tuple(answer.score if answer else 0.0 for answer in answers)),
        "EXIT": ((n,), tuple(answer.exit if answer else 0 for answer in answers)),
        "TOP_LABELS": ((n, k), tuple(chain.from_iterable(_top_labels(answer, k) for answer in answers))),
        "TOP_SCORES": ((n, k), tuple(chain.from_iterable(_top_scores(answer, k) for answer in answers))),
    }


def _top_labels(answer: Classification | None, k: int) -> list[bytes]:
    labels = [entry.label.encode() for entry in answer.top_k] if answer else []
    return labels + [b""] * (k - len(labels))


def _top_scores(answer: Classification | None, k: int) -> list[float]:
    scores = [entry.score for entry in answer.top_k] if answer else []
    return scores + [0.0] * (k - len(scores))


def _class_texts(reply: ClassifyReply, k: int) -> _Column:
    """The best classes as ``score:index:label``."""
    texts: list[Element] = []
    for item in reply.items:
        entries = list(zip(item.indices, item.top_k, strict=True))[:k] if isinstance(item, Classification) else []
        texts += [f"{entry.score:f}:{index}:{entry.label}".encode() for index, entry in entries]
        texts += [b""] * (k - len(entries))
    return (len(reply.items), k), tuple(texts)


def most_classes(top_k: int, wanted: Sequence[Wanted], limits: IngressLimits) -> int:
    """How many classes of each row must be known. Raises: InvalidRequest: more than may be asked for."""
    most = max(top_k, *(one.num_classes for one in wanted))
    check_top_k(most, limits)
    return most


_SCORES: Final = ("SCORE", "TOP_SCORES")
"""Outputs that may be asked for as classes in text."""


def chosen_outputs(sent: Sequence[tuple[str, Any]], card: Card) -> tuple[Wanted, ...]:
    """Return the outputs that are wanted, of (name, parameter ``classification`` or None); all that the model has where
    none is named.

    Raises: UnknownField, InvalidRequest: an output that it does not have, one asked for twice, or not as classes.
    """
    known = tuple(name for name, _, _ in outputs_of(card))
    for name, _ in sent:
        if name not in known:
            raise UnknownField(f"output {shown(name)} is unknown; known: {', '.join(known)}", param="outputs")
    if len({name for name, _ in sent}) != len(sent):
        raise InvalidRequest("an output is asked for twice; name each once", param="outputs")
    return tuple(Wanted(name, _num_classes(name, value, card)) for name, value in sent) or tuple(map(Wanted, known))


def _num_classes(name: str, value: Any, card: Card) -> int:
    if value is None:
        return 0
    if type(value) is not int or value < 1:
        raise InvalidRequest(
            f"classification of output {name} is {shown(value)}; send the number of classes", param="outputs"
        )
    if "classify" not in card.tasks or name not in _SCORES:
        raise InvalidRequest(
            f"output {name} has no classes; the parameter classification is for {' and '.join(_SCORES)} of classifiers",
            param="outputs",
        )
    num_classes: int = card.io.num_classes
    return min(value, num_classes)
