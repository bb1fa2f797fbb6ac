"""Open Inference Protocol tensors: sizes and types checked before anything is allocated."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.domain import Budget, Classification, ClassifyReply, ImageInput, LabelScore, Surface
from serving.errors import ClientError, InvalidImage, InvalidRequest, QueueFull, TooManyImages, UnknownField
from serving.limits import MAX_TYPED_ELEMENTS, IngressLimits
from serving.tasks.infer.tensors import (
    QUANTISE_HERE_BYTES,
    CallFacts,
    InputTensor,
    Wanted,
    chosen_outputs,
    most_classes,
    outputs_from_reply,
    outputs_of,
    request_from_tensors,
)
from tests.support.clients import length_prefixed, split_prefixed
from tests.support.fake_service import make_card, make_report

LIMITS = IngressLimits(max_images=4)
CARD = make_card()
OUTPUTS = outputs_of(CARD)
OUTPUT_NAMES = tuple(name for name, _, _ in OUTPUTS)
ALL = tuple(map(Wanted, OUTPUT_NAMES))
FACTS = CallFacts(request_id="r", surface=Surface.HTTP_OIP, tenant="t", model=CARD.id, budget=Budget(), deadline_s=None)


async def images_of(tensors: Sequence[InputTensor]) -> tuple[ImageInput, ...]:
    return (await request_from_tensors(tensors, CARD, 1, LIMITS, FACTS)).images


def image(shape: Sequence[int], raw: bytes | None = None, values: Any = None, **changes: Any) -> InputTensor:
    fields = {"name": "IMAGE", "datatype": "BYTES", "shape": tuple(shape), "raw": raw, "values": values} | changes
    return InputTensor(**fields)


def pixels(shape: Sequence[int], raw: bytes | None = None, values: Any = None, datatype: str = "UINT8") -> InputTensor:
    return image(shape, raw, values, name="PIXELS", datatype=datatype)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
async def test_raw_bytes_elements_are_cut_apart(shape: list[int]) -> None:
    images = await images_of([image(shape, length_prefixed([b"one", b""]))])
    assert [item.encoded for item in images] == [b"one", b""]


async def test_typed_elements_are_bytes_or_base64() -> None:
    (as_bytes,) = await images_of([image([1], values=[b"\xff\0"])])
    (as_text,) = await images_of([image([1, 1], values=[["/wA="]])])
    assert as_bytes.encoded == as_text.encoded == b"\xff\0"


async def test_pixels_of_every_shape_and_type_are_the_same_image() -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    floats = array.astype(np.float32) / np.float32(255)
    tensors = [
        pixels(array.shape, array.tobytes()),
        pixels(array.shape, memoryview(array.tobytes())),
        pixels(array.shape, values=array.flatten().tolist()),
        pixels(array.shape, values=array.tolist()),
        pixels(array.shape, floats.tobytes(), datatype="FP32"),
        pixels(array.shape, values=floats.flatten().tolist(), datatype="FP32"),
        pixels(array.shape, values=floats.tolist(), datatype="FP32"),
    ]
    for tensor in tensors:
        images = await images_of([tensor])
        assert len(images) == 2
        for got, expected in zip(images, array, strict=True):
            assert got.pixels is not None
            assert got.pixels.dtype == np.uint8
            np.testing.assert_array_equal(got.pixels, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.001, 1.001, 255.0])
async def test_float_image_out_of_range_fails_alone(value: float) -> None:
    array = np.full((3, 4, 5, 3), 0.5, np.float32)
    array[1, 2, 3, 1] = value
    first, broken, last = await images_of([pixels(array.shape, array.tobytes(), datatype="FP32")])
    assert isinstance(broken.error, InvalidImage)
    assert broken.pixels is None
    assert first.pixels is not None
    assert last.pixels is not None


async def test_large_float_batch_is_the_same_as_a_small_one() -> None:
    array = np.random.default_rng(0).random((4, 200, 300, 3), np.float32)
    assert array.nbytes > QUANTISE_HERE_BYTES
    large = await images_of([pixels(array.shape, array.tobytes(), datatype="FP32")])
    for got, one in zip(large, array, strict=True):
        (small,) = await images_of([pixels((1, *one.shape), one.tobytes(), datatype="FP32")])
        np.testing.assert_array_equal(got.pixels, small.pixels)


async def test_ones_and_zeros_may_be_written_as_integers() -> None:
    (got,) = await images_of([pixels([1, 1, 1, 3], values=[0, 1, 0.5], datatype="FP32")])
    assert got.pixels is not None
    assert got.pixels.tolist() == [[[0, 255, 128]]]


GOOD_PIXELS = bytes(1 * 2 * 2 * 3)
BAD_TENSORS: list[tuple[str, list[InputTensor], type[ClientError]]] = [
    ("none", [], InvalidRequest),
    ("both", [image([1], length_prefixed([b"x"])), pixels([1, 2, 2, 3], GOOD_PIXELS)], InvalidRequest),
    ("twice", [image([1], length_prefixed([b"x"]))] * 2, InvalidRequest),
    ("unknown", [image([1], length_prefixed([b"x"]), name="image")], UnknownField),
    ("unknown_among_known", [image([1], b""), image([1], b"", name="SEQ")], UnknownField),
    ("image_fp32", [image([1], b"1234", datatype="FP32")], InvalidRequest),
    ("image_string", [image([1], b"1234", datatype="STRING")], InvalidRequest),
    ("pixels_fp16", [pixels([1, 2, 2, 3], bytes(24), datatype="FP16")], InvalidRequest),
    ("pixels_bf16", [pixels([1, 2, 2, 3], bytes(24), datatype="BF16")], InvalidRequest),
    ("pixels_int8", [pixels([1, 2, 2, 3], GOOD_PIXELS, datatype="INT8")], InvalidRequest),
    ("pixels_bytes", [pixels([1, 2, 2, 3], GOOD_PIXELS, datatype="BYTES")], InvalidRequest),
    ("datatype_case", [pixels([1, 2, 2, 3], GOOD_PIXELS, datatype="uint8")], InvalidRequest),
    ("image_scalar", [image([], length_prefixed([b"x"]))], InvalidRequest),
    ("image_matrix", [image([1, 2], length_prefixed([b"x", b"y"]))], InvalidRequest),
    ("image_empty", [image([0], b"")], InvalidRequest),
    ("image_negative", [image([-1], length_prefixed([b"x"]))], InvalidRequest),
    ("image_too_many", [image([5], length_prefixed([b"x"] * 5))], TooManyImages),
    ("image_huge_count", [image([2**31 - 1], length_prefixed([b"x"]))], TooManyImages),
    ("image_missing_element", [image([2], length_prefixed([b"x"]))], InvalidRequest),
    ("image_left_over", [image([1], length_prefixed([b"x", b"y"]))], InvalidRequest),
    ("image_no_prefix", [image([1], b"\x89PNG\r\n\x1a\n")], InvalidRequest),
    ("image_short_prefix", [image([1], b"\1\0")], InvalidRequest),
    ("image_length_over", [image([1], struct.pack("<I", 2**32 - 1) + b"x")], InvalidRequest),
    ("image_nothing", [image([1])], InvalidRequest),
    ("image_raw_and_typed", [image([1], length_prefixed([b"x"]), [b"x"])], InvalidRequest),
    ("image_numbers", [image([2], values=[1, 2])], InvalidRequest),
    ("image_mixed", [image([2], values=["AAAA", b"x"])], InvalidRequest),
    ("image_objects", [image([1], values=[{}])], InvalidRequest),
    ("image_null", [image([1], values=[None])], InvalidRequest),
    ("image_nested_too_deep", [image([1], values=[["AAAA"]])], InvalidRequest),
    ("image_wrong_count", [image([2], values=["AAAA"])], InvalidRequest),
    ("pixels_no_batch", [pixels([2, 2, 3], GOOD_PIXELS)], InvalidRequest),
    ("pixels_channels_first", [pixels([1, 3, 2, 2], GOOD_PIXELS)], InvalidRequest),
    ("pixels_grey", [pixels([1, 2, 2, 1], bytes(4))], InvalidRequest),
    ("pixels_rgba", [pixels([1, 2, 2, 4], bytes(16))], InvalidRequest),
    ("pixels_zero_side", [pixels([1, 0, 2, 3], b"")], InvalidRequest),
    ("pixels_negative", [pixels([1, -2, -2, 3], GOOD_PIXELS)], InvalidRequest),
    ("pixels_short", [pixels([1, 2, 2, 3], GOOD_PIXELS[:-1])], InvalidRequest),
    ("pixels_long", [pixels([1, 2, 2, 3], GOOD_PIXELS + b"\0")], InvalidRequest),
    ("pixels_float_bytes", [pixels([1, 2, 2, 3], GOOD_PIXELS, datatype="FP32")], InvalidRequest),
    ("pixels_overflow_64", [pixels([4, 2**31 - 1, 2**31 - 1, 3], GOOD_PIXELS)], InvalidRequest),
    ("pixels_wraps_to_zero", [pixels([4, 2**30, 2**30, 3], b"")], InvalidRequest),
    ("pixels_dim_over", [pixels([1, 2**31, 1, 3], GOOD_PIXELS)], InvalidRequest),
    ("pixels_absurd_dim", [pixels([1, 10**400, 1, 3], GOOD_PIXELS)], InvalidRequest),
    ("pixels_too_many", [pixels([5, 1, 1, 3], bytes(15))], TooManyImages),
    ("pixels_typed_over", [pixels([1, 1, MAX_TYPED_ELEMENTS, 3], values=[0])], InvalidRequest),
    ("pixels_many_elements", [pixels([1, 1, 1, 3], values=[0] * (MAX_TYPED_ELEMENTS + 1))], InvalidRequest),
    ("pixels_value_over", [pixels([1, 1, 1, 3], values=[0, 0, 256])], InvalidRequest),
    ("pixels_value_under", [pixels([1, 1, 1, 3], values=[0, 0, -1])], InvalidRequest),
    ("pixels_value_huge", [pixels([1, 1, 1, 3], values=[0, 0, 10**400])], InvalidRequest),
    ("pixels_fraction", [pixels([1, 1, 1, 3], values=[0, 0, 0.5])], InvalidRequest),
    ("pixels_boolean", [pixels([1, 1, 1, 3], values=[0, 0, True])], InvalidRequest),
    ("pixels_text", [pixels([1, 1, 1, 3], values=["0", "0", "0"])], InvalidRequest),
    ("pixels_ragged", [pixels([1, 2, 1, 3], values=[[[[0, 0, 0]], [[0, 0]]]])], InvalidRequest),
    ("pixels_half_nested", [pixels([2, 1, 1, 3], values=[[[[0, 0, 0]]], 0, 0, 0])], InvalidRequest),
    ("pixels_empty_list", [pixels([1, 1, 1, 3], values=[])], InvalidRequest),
    ("float_text", [pixels([1, 1, 1, 3], values=[0.0, 0.0, "NaN"], datatype="FP32")], InvalidRequest),
]


@pytest.mark.parametrize(("name", "tensors", "error"), BAD_TENSORS, ids=[row[0] for row in BAD_TENSORS])
async def test_bad_tensor_is_refused(name: str, tensors: list[InputTensor], error: type[ClientError]) -> None:
    with pytest.raises(error) as caught:
        await images_of(tensors)
    assert type(caught.value) is error
    assert caught.value.param
    assert len(caught.value.message) < 400


LEAVES = st.integers(-1, 300) | st.floats() | st.booleans() | st.none() | st.sampled_from(["AAAA", "x", b"y"])
VALUES = LEAVES | st.lists(LEAVES | st.lists(LEAVES, max_size=4), max_size=4)
TENSORS = st.builds(
    InputTensor,
    name=st.sampled_from(["IMAGE", "PIXELS", "OTHER"]),
    datatype=st.sampled_from(["BYTES", "UINT8", "FP32", "FP16"]),
    shape=st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**63, 2**64]), max_size=5).map(tuple)
    | st.sampled_from([(1, 1, 1, 3), (2, 1, 1, 3), (1,), (2, 1)]),
    raw=st.none() | st.binary(max_size=40),
    values=st.none() | st.lists(VALUES, max_size=8),
)


@settings(max_examples=600)
@given(st.lists(TENSORS, min_size=1, max_size=2))
def test_any_tensors_give_images_or_a_typed_error(tensors: list[InputTensor]) -> None:
    try:
        images = asyncio.run(images_of(tensors))
    except ClientError:
        return
    assert len(images) == tensors[0].shape[0]
    for item in images:
        assert sum(part is not None for part in (item.encoded, item.pixels, item.error)) == 1


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=4))
def test_raw_bytes_round_trip(elements: list[bytes]) -> None:
    tensor = image([len(elements)], length_prefixed(elements))
    images = asyncio.run(images_of([tensor]))
    assert [item.encoded for item in images] == elements


def classification(*labels: str) -> Classification:
    return Classification(
        exit=2,
        top_k=tuple(LabelScore(label, 0.5 / (i + 1)) for i, label in enumerate(labels)),
        indices=tuple(range(len(labels))),
    )


REPLY = ClassifyReply(
    model="m", items=(classification("a", "bé"), QueueFull("full"), classification("c")), report=make_report()
)


def test_outputs_have_the_shapes_and_types_of_the_metadata() -> None:
    outputs = {tensor.name: tensor for tensor in outputs_from_reply(REPLY, CARD, ALL)}
    assert tuple(outputs) == OUTPUT_NAMES
    for name, datatype, shape in OUTPUTS:
        assert outputs[name].datatype == datatype
        assert len(outputs[name].shape) == len(shape)
        assert int(np.prod(outputs[name].shape)) == len(outputs[name].values)
    assert outputs["LABEL"].values == (b"a", b"", b"c")
    assert outputs["EXIT"].values == (2, 0, 2)
    assert outputs["TOP_LABELS"].shape == (3, 2)
    assert outputs["TOP_LABELS"].values == (b"a", "bé".encode(), b"", b"", b"c", b"")
    assert outputs["ERROR"].values[0] == b""
    assert b'"queue_full"' in outputs["ERROR"].values[1]  # type: ignore[operator]


def test_outputs_are_little_endian_and_length_prefixed() -> None:
    outputs = {tensor.name: tensor.to_raw() for tensor in outputs_from_reply(REPLY, CARD, ALL)}
    np.testing.assert_array_equal(np.frombuffer(outputs["SCORE"], "<f4"), np.array([0.5, 0, 0.5], np.float32))
    np.testing.assert_array_equal(np.frombuffer(outputs["EXIT"], "<i4"), [2, 0, 2])
    assert split_prefixed(outputs["TOP_LABELS"])[1] == "bé".encode()


def wanted(*names: str) -> tuple[Wanted, ...]:
    return tuple(map(Wanted, names))


def test_wanted_outputs_come_alone_and_in_the_order_asked() -> None:
    assert [tensor.name for tensor in outputs_from_reply(REPLY, CARD, wanted("EXIT", "LABEL"))] == ["EXIT", "LABEL"]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ((("LOGITS", None),), UnknownField),
        ((("label", None),), UnknownField),
        ((("LABEL", None), ("LABEL", None)), InvalidRequest),
        ((("LABEL", 2),), InvalidRequest),
        ((("SCORE", 0),), InvalidRequest),
        ((("SCORE", True),), InvalidRequest),
        ((("SCORE", "2"),), InvalidRequest),
    ],
)
def test_bad_wanted_output_is_refused(sent: tuple[tuple[str, Any], ...], error: type[ClientError]) -> None:
    with pytest.raises(error):
        chosen_outputs(sent, make_card())


def test_scores_may_be_asked_for_as_classes_in_text() -> None:
    chosen = chosen_outputs((("SCORE", 2), ("TOP_LABELS", None), ("TOP_SCORES", 99)), CARD)
    assert chosen == (Wanted("SCORE", 2), Wanted("TOP_LABELS"), Wanted("TOP_SCORES", CARD.io.num_classes))
    text, labels, _ = outputs_from_reply(REPLY, CARD, chosen)
    assert (text.datatype, text.shape) == ("BYTES", (3, 2))
    assert text.values == (b"0.500000:0:a", "0.250000:1:bé".encode(), b"", b"", b"0.500000:0:c", b"")
    assert labels.shape == (3, 2)
    assert most_classes(3, chosen, IngressLimits()) == CARD.io.num_classes
    with pytest.raises(InvalidRequest, match="top_k is 10"):
        most_classes(1, chosen, IngressLimits(max_top_k=9))


def test_model_without_early_exits_has_no_exit() -> None:
    card = make_card(num_exits=1)
    assert chosen_outputs((), card) == tuple(one for one in ALL if one.name != "EXIT")
    with pytest.raises(UnknownField, match="output 'EXIT' is unknown"):
        chosen_outputs((("EXIT", None),), card)
