import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loadtest.scenario import parse_scenario
from loadtest.workloads.bad_inputs import makers
from loadtest.workloads.digits import draw_digit
from loadtest.workloads.mix import CLOSED_LOOP_POOL, PhaseLoad, build_load, count_requests
from loadtest.workloads.words import draw_words
from tests.unit.loadtest.test_scenario import minimal, phase


def load(**fields: Any) -> list[PhaseLoad]:
    fields.setdefault("phases", [phase(arrival={"kind": "uniform", "rate_per_s": 100}, duration_s=10)])
    return build_load(parse_scenario(minimal(**fields), source="x"))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size_px", [8, 32, 65])
def test_a_drawn_digit_is_an_rgb_image_of_its_size_and_format(image_format: str, size_px: int) -> None:
    data, label = draw_digit(1, 2, size_px=size_px, image_format=image_format)
    image = Image.open(io.BytesIO(data))
    assert (image.size, image.mode, image.format) == ((size_px, size_px), "RGB", image_format.upper())
    assert label in set("0123456789")


def test_digits_depend_on_seed_and_index_and_on_nothing_else() -> None:
    drawn = [draw_digit(1, index)[0] for index in range(200)]
    assert drawn == [draw_digit(1, index)[0] for index in range(200)]
    assert len(set(drawn)) == 200
    assert draw_digit(2, 0)[0] != drawn[0]
    assert {draw_digit(1, index)[1] for index in range(200)} == set("0123456789")


def test_digits_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValueError, match="size_px is 4"):
        draw_digit(1, 1, size_px=4)
    with pytest.raises(ValueError, match="image_format"):
        draw_digit(1, 1, image_format="gif")


@pytest.mark.parametrize("kind", sorted(makers()))
def test_no_bad_image_can_be_decoded(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    data = makers()[kind](1)
    with pytest.raises((OSError, SyntaxError, Image.DecompressionBombError)):
        Image.open(io.BytesIO(data)).load()


def test_the_bomb_is_small_and_its_header_is_huge() -> None:
    data = makers()["bomb_png"](1)
    assert len(data) < 1000
    assert int.from_bytes(data[16:20], "big") == int.from_bytes(data[20:24], "big") == 60_000


def test_the_same_scenario_is_the_same_load_byte_for_byte_and_another_seed_is_not() -> None:
    def fingerprint(seed: int) -> list[Any]:
        fields = {"images": {"repeat_share": 0.3, "bad_share": 0.1}, "seed": seed}
        arrival = {"kind": "gamma", "rate_per_s": 50, "cv": 2}
        (item,) = load(phases=[phase(arrival=arrival)], **fields)
        return [item.times_s, [(p.images, p.kind, p.expected_labels) for p in item.payloads]]

    assert fingerprint(4) == fingerprint(4)
    assert fingerprint(4)[0] != fingerprint(5)[0]
    assert fingerprint(4)[1] != fingerprint(5)[1]


def test_without_repeats_every_request_is_new() -> None:
    (item,) = load()
    assert len({payload.images for payload in item.payloads}) == len(item.payloads) == 1000


def test_shares_of_surfaces_repeats_and_bad_inputs_are_as_asked() -> None:
    mix = [{"surface": "http_classify", "weight": 3}, {"surface": "grpc_vireo", "weight": 1, "images_per_request": 2}]
    (item,) = load(mix=mix, images={"repeat_share": 0.25, "bad_share": 0.1})
    payloads = item.payloads
    good = [payload for payload in payloads if not payload.expects_error]
    # Six standard deviations of a binomial share of 1,000.
    assert sum(payload.surface == "http_classify" for payload in payloads) / 1000 == pytest.approx(0.75, abs=0.082)
    assert 1 - len(good) / 1000 == pytest.approx(0.1, abs=0.057)
    assert 1 - len({id(payload) for payload in good}) / len(good) == pytest.approx(0.25, abs=0.087)
    assert {len(payload.images) for payload in good if payload.surface == "grpc_vireo"} == {2}
    assert {payload.kind for payload in payloads if payload.expects_error} == set(makers())
    assert all(payload.expected_labels is None for payload in payloads if payload.expects_error)


def test_beyond_the_pool_requests_are_sent_again_in_turn() -> None:
    (item,) = load(images={"pool_size": 10})
    assert len({id(payload) for payload in item.payloads}) == 10
    assert item.payloads[10:20] == item.payloads[:10]


def test_a_closed_phase_has_no_times_and_a_pool_to_draw_from() -> None:
    fields = {"phases": [phase(arrival={"kind": "closed", "concurrency": 2})]}
    (item,) = load(**fields)
    assert (item.times_s, len(item.payloads)) == ((), CLOSED_LOOP_POOL)
    assert count_requests(parse_scenario(minimal(**fields), source="x")) == CLOSED_LOOP_POOL


def test_a_trace_is_sent_as_recorded_within_its_phase() -> None:
    arrival = {"kind": "trace", "times_s": [0, 1, 3, 9], "speed": 2}
    (item,) = load(phases=[phase(arrival=arrival, duration_s=2)])
    assert item.times_s == (0.0, 0.5, 1.5)


def test_formats_are_used_in_turn_and_budgets_reach_the_payload() -> None:
    mix = [{"surface": "http_classify", "budget": {"latency_ms": 50, "priority": "high"}}]
    (item,) = load(mix=mix, images={"formats": ["png", "jpeg"]})
    starts = [payload.images[0][:2] for payload in item.payloads[:4]]
    assert starts == [b"\x89P", b"\xff\xd8"] * 2
    assert item.payloads[0].budget is not None
    assert item.payloads[0].budget.to_json() == {"latency_ms": 50, "priority": "high"}


def test_drawn_words_have_their_size_and_depend_on_seed_and_index() -> None:
    drawn = [draw_words(1, index, width_px=96, height_px=48) for index in range(50)]
    assert drawn == [draw_words(1, index, width_px=96, height_px=48) for index in range(50)]
    assert len({*drawn, draw_words(2, 0, width_px=96, height_px=48)}) == 51
    for image_format in ("png", "jpeg", "webp"):
        image = Image.open(io.BytesIO(draw_words(1, 1, width_px=40, height_px=30, image_format=image_format)))
        assert (image.size, image.mode, image.format) == ((40, 30), "RGB", image_format.upper())
    for fields in ({"width_px": 8, "height_px": 40}, {"width_px": 40, "height_px": 40, "image_format": "gif"}):
        with pytest.raises(ValueError, match=r"picture of 8 x 40|image_format"):
            draw_words(1, 1, **fields)


def chat_load(surface: str = "http_chat", **chat: Any) -> list[Any]:
    mix = [{"surface": surface, "chat": {"width_px": 32, "height_px": 32, **chat}}]
    phases = [phase(arrival={"kind": "closed", "concurrency": 2, "num_requests": 200})]
    scenario = parse_scenario(minimal(mix=mix, phases=phases), source="x")
    (item,) = build_load(scenario)
    assert len(item.payloads) == count_requests(scenario) == 200
    return list(item.payloads)


def test_a_chat_asks_its_own_model_about_pictures_that_are_all_new() -> None:
    payloads = chat_load(question="What?", max_tokens=7, temperature=0.5)
    assert {(p.model, p.kind, p.expects_error, p.expected_labels) for p in payloads} == {
        ("texthawk2-nano", "words", False, None)
    }
    assert {(p.question.text, p.question.max_tokens, p.question.temperature) for p in payloads} == {("What?", 7, 0.5)}
    assert len({p.images for p in payloads}) == 200


def test_repeated_pictures_come_with_new_questions() -> None:
    payloads = chat_load(is_numbered=True, repeat_images_share=0.7)
    assert len({p.question.text for p in payloads}) == 200
    assert 30 <= len({p.images for p in payloads}) <= 90


def test_files_are_shown_in_turn_instead_of_drawn_pictures(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for number, path in enumerate(paths):
        path.write_bytes(draw_words(1, number, width_px=32, height_px=32))
    payloads = chat_load(files=[str(path) for path in paths])
    shown = [payload.images for payload in payloads]
    assert set(shown) == {(path.read_bytes(),) for path in paths}
    assert all(one != other for one, other in pairwise(shown))


def test_a_chat_without_pictures_is_text_and_classification_asks_nothing() -> None:
    (item,) = load(mix=[{"surface": "grpc_chat", "images_per_request": 0}])
    assert {(p.kind, p.images) for p in item.payloads} == {("text", ())}
    assert {p.question for p in load()[0].payloads} == {None}
