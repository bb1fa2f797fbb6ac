"""Tokenizer, chat template and prompts: exact ids, nothing that users type steers the model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX, Qwen2Tokenizer

from models.contract import Turn
from models.families.texthawk2 import tokenizer as tokenizer_module
from models.families.texthawk2.prompt import PromptBuilder
from models.families.texthawk2.tiling import Grid
from models.families.texthawk2.tokenizer import add_texthawk_tokens, build_nano_tokenizer
from models.families.texthawk2.tokens import (
    BOX_TOKENS,
    CONTROL_TOKENS,
    COORDINATE_TOKENS,
    box_text,
    find_boxes,
    special_tokens,
)

CHINESE = "中国人民大学上海北京一二三，。é𠮷"
BOX = "<box><012><034><,><567><789></box>"


NANO = build_nano_tokenizer(CHINESE)
BUILDER = PromptBuilder(NANO.backend_tokenizer)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return NANO


@pytest.fixture
def builder() -> PromptBuilder:
    return BUILDER


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def ids_named(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[int]:
    return [cast(int, tokenizer.convert_tokens_to_ids(name)) for name in names]


# -- vocabulary ------------------------------------------------------------------------------------------------------


def test_latin_is_one_token_per_character_and_its_id_is_the_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Hello, the world isn't 2 < 3;\n\n  ok\t{}"
    assert ids_of(tokenizer, text) == list(text.encode())


def test_every_given_character_is_one_token_and_no_other_is(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [ids_of(tokenizer, character) for character in CHINESE]
    assert all(len(one) == 1 for one in ids)
    assert len({one[0] for one in ids}) == len(CHINESE)
    assert ids_of(tokenizer, CHINESE) == [one[0] for one in ids]
    assert all(len(ids_of(tokenizer, other)) > 1 for other in "们龍ñ😀")


def test_vocabulary_holds_bytes_beginnings_characters_and_special_tokens_only(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    beginnings = {c.encode()[:n] for c in CHINESE for n in range(2, len(c.encode()) + 1)}
    assert len(tokenizer) == 256 + len(beginnings) + len(special_tokens())
    first = len(tokenizer) - len(special_tokens())
    assert ids_named(tokenizer, special_tokens()) == list(range(first, len(tokenizer)))
    assert len(COORDINATE_TOKENS) == 1000
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


@given(st.text())
def test_any_text_survives_the_round_trip_up_to_nfc(text: str) -> None:
    assert NANO.decode(ids_of(NANO, text)) == normalize("NFC", text)


@pytest.mark.parametrize("character", ["a", "\n", "\uf900"])
def test_character_that_cannot_be_a_token_is_refused(character: str) -> None:
    with pytest.raises(ValueError, match="cannot be a token"):
        build_nano_tokenizer("中" + character)


def test_split_is_that_of_the_installed_qwen2() -> None:
    assert tokenizer_module._QWEN2_SPLIT == PRETOKENIZE_REGEX


# -- boxes -----------------------------------------------------------------------------------------------------------


def test_box_is_seven_tokens_and_comes_back(tokenizer: PreTrainedTokenizerFast, builder: PromptBuilder) -> None:
    text = box_text((12, 34, 567, 789))
    assert text == BOX
    ids = ids_of(tokenizer, text)
    assert len(ids) == 7
    assert tokenizer.decode(ids, skip_special_tokens=True) == BOX
    assert builder.decode(ids) == BOX
    assert find_boxes(f"it is {BOX}, and {box_text((0, 0, 999, 999))}") == [(12, 34, 567, 789), (0, 0, 999, 999)]
    assert find_boxes("<box><012><034><567><789></box><box><1><2><,><3><4></box>") == []


@pytest.mark.parametrize("box", [(0, 0, 0), (0, 0, 1000, 5), (-1, 0, 5, 5), (5, 0, 4, 9), (0, 5, 9, 4)])
def test_impossible_box_is_refused(box: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        box_text(box)


# -- what users type -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", CONTROL_TOKENS)
@pytest.mark.parametrize("around", ["{}", "a{}b", " {} ", "{}{}", "<{}>", "中{}国"])
def test_typed_control_token_is_spelled_in_bytes(
    tokenizer: PreTrainedTokenizerFast, builder: PromptBuilder, token: str, around: str
) -> None:
    text = around.replace("{}", token)
    ids = builder.encode_untrusted(text)
    control = set(ids_named(tokenizer, CONTROL_TOKENS))
    assert not control & set(ids)
    assert builder.decode(ids, skip_control=False) == text
    assert control & set(ids_of(tokenizer, text))  # which the trusted path would have produced


def test_typed_box_token_is_itself_where_allowed_and_bytes_elsewhere(builder: PromptBuilder) -> None:
    for token in BOX_TOKENS:
        assert len(builder.encode_untrusted(token)) == 1
        assert builder.encode_untrusted(token, allow_boxes=False) == list(token.encode())


@given(st.lists(st.sampled_from([*CONTROL_TOKENS, BOX, "<|im_", "start|>", "a", "中", "\n", "<", ">"]), max_size=8))
def test_no_mixture_of_pieces_gives_a_control_token(pieces: list[str]) -> None:
    ids = BUILDER.build([("user", pieces)])
    assert (ids.count(BUILDER.end_of_turn_id), ids.count(BUILDER.image_id), ids.count(BUILDER.end_of_text_id)) == (
        1,
        0,
        0,
    )
    assert ids.count(ids[0]) == 2  # one turn begins for the user, one for the answer


# -- prompts ---------------------------------------------------------------------------------------------------------

CONVERSATIONS: list[list[Turn]] = [
    [("user", ["Read the text."])],
    [("user", [None, "\nRead it."])],
    [("user", ["\n\n  First ", None, None, " and ", f"{BOX}?", " "])],
    [("system", ["你 are 中国"]), ("user", ["a", None]), ("assistant", ["b\n"]), ("user", [""])],
    [("user", [])],
]


def as_template_input(messages: list[Turn]) -> list[dict[str, Any]]:
    def part(p: object) -> dict[str, object]:
        return {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"}

    return [{"role": role, "content": [part(p) for p in parts]} for role, parts in messages]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("generation", [True, False])
def test_builder_equals_the_chat_template(
    tokenizer: PreTrainedTokenizerFast, builder: PromptBuilder, messages: list[Turn], generation: bool
) -> None:
    encoded = tokenizer.apply_chat_template(
        as_template_input(messages), add_generation_prompt=generation, tokenize=True, return_dict=False
    )
    assert builder.build(messages, add_generation_prompt=generation) == encoded


def test_template_text_is_qwens_without_a_default_system_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "yo"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "read"}]},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
        "<|im_start|>user\n<image>read<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "message", [{"role": "tool", "content": "x"}, {"role": "user", "content": [{"type": "video"}]}]
)
def test_template_refuses_what_the_builder_cannot_say(
    tokenizer: PreTrainedTokenizerFast, message: dict[str, Any]
) -> None:
    with pytest.raises(Exception, match="must be"):
        tokenizer.apply_chat_template([message], tokenize=False)


def test_builder_refuses_an_unknown_role(builder: PromptBuilder) -> None:
    with pytest.raises(ValueError, match="system, user, assistant"):
        builder.build([("tool", ["x"])])


def test_expansion_puts_the_tokens_of_each_grid_between_its_marks(builder: PromptBuilder) -> None:
    ids = builder.build([("user", ["a", None, "b", None])])
    grids = [Grid(1, 1), Grid(5, 4)]
    expanded = builder.expand(ids, grids)
    start, end = expanded.index(builder.vision_start_id), expanded.index(builder.vision_end_id)
    assert expanded[start + 1 : end] == [builder.image_id] * 16
    assert expanded.count(builder.image_id) == 16 + 336
    assert expanded.count(builder.vision_start_id) == expanded.count(builder.vision_end_id) == 2
    assert builder.num_expanded(ids, grids) == len(expanded)
    with pytest.raises(ValueError, match="2 images and 1 grids"):
        builder.expand(ids, grids[:1])


# -- files -----------------------------------------------------------------------------------------------------------


def test_saved_tokenizer_loads_everywhere_with_the_same_ids(
    tokenizer: PreTrainedTokenizerFast, builder: PromptBuilder, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    text = f"中国 hi {BOX}<image><|im_end|>"
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == ids_of(tokenizer, text)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert ids_of(loaded, text) == ids_of(tokenizer, text)
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.eos_token_id, loaded.pad_token_id) == (builder.end_of_turn_id, builder.end_of_text_id)
    assert loaded.decode(ids_of(loaded, text), skip_special_tokens=True) == f"中国 hi {BOX}"
    read = PromptBuilder.from_dir(tmp_path)
    assert read.build(CONVERSATIONS[2]) == builder.build(CONVERSATIONS[2])
    assert read.vocabulary_size == len(tokenizer)


def test_folder_with_another_chat_template_or_none_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        PromptBuilder.from_dir(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match="not the template"):
        PromptBuilder.from_dir(tmp_path)


def small_qwen2() -> Qwen2Tokenizer:
    """Qwen2's class with bytes for a vocabulary and its own three special tokens."""
    letters = {letter: i for i, letter in enumerate(tokenizer_module._byte_letters())}
    return Qwen2Tokenizer(vocab=letters, merges=[], extra_special_tokens=["<|im_start|>", "<|im_end|>"])


def test_qwen2_gains_the_missing_tokens_and_keeps_its_own() -> None:
    qwen2 = small_qwen2()
    before = {token: qwen2.convert_tokens_to_ids(token) for token in CONTROL_TOKENS[:3]}
    size = len(qwen2)
    assert add_texthawk_tokens(qwen2) == 3 + len(BOX_TOKENS)
    assert len(qwen2) == size + 3 + len(BOX_TOKENS)
    assert {token: qwen2.convert_tokens_to_ids(token) for token in before} == before
    assert add_texthawk_tokens(qwen2) == 0
    builder = PromptBuilder(qwen2.backend_tokenizer)
    assert len(builder.encode_untrusted(BOX)) == 7
    assert builder.encode_untrusted("<|im_end|>") == list(b"<|im_end|>")


def test_tokenizer_without_our_tokens_or_with_others_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        PromptBuilder(small_qwen2().backend_tokenizer)
    nano = build_nano_tokenizer("中")
    nano.add_tokens(["<tool>"])
    with pytest.raises(ValueError, match="<tool>"):
        PromptBuilder(nano.backend_tokenizer)


def test_builder_leaves_the_passed_tokenizer_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    PromptBuilder(tokenizer.backend_tokenizer).encode_untrusted("<image>")
    assert len(ids_of(tokenizer, "<image>")) == 1


def test_serving_side_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, models.families.texthawk2.tiling, models.families.texthawk2.tokens, "
        "models.families.texthawk2.prompt\n"
        "print({'torch', 'transformers', 'torchvision'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
