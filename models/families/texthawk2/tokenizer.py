"""Tokenizers: the nano model's own, and what Qwen2's needs to become TextHawk2's. Needs ``transformers``.

At serving time ``models.families.texthawk2.prompt`` reads the saved ``tokenizer.json`` without it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from models.families.texthawk2.tokens import BOX_TOKENS, CHAT_TEMPLATE, CONTROL_TOKENS, END_OF_TEXT, TURN_END

_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where the published Qwen2 tokenizer cuts text before it merges (its tokenizer.json)."""


def build_nano_tokenizer(chinese: str) -> PreTrainedTokenizerFast:
    """Qwen2's byte-level BPE with a vocabulary of bytes and of the characters in ``chinese``.

    Ids 0 to 255 are the bytes by value, so Latin text is one token per character. Each character of ``chinese`` (any
    order, repeats ignored) is one token, put together from its bytes by merges; the two-byte beginnings that this needs
    follow the bytes, then come the characters, then the special tokens. Every other text is still encoded, as bytes.

    Raises:
        ValueError: a character that is a single byte already, or that NFC would replace.
    """
    characters = sorted(set(chinese))
    for character in characters:
        if character.isascii() or normalizers.NFC().normalize_str(character) != character:
            raise ValueError(f"{character!r} cannot be a token of its own; give NFC characters beyond ASCII")
    vocabulary, merges = _merge_characters(characters)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)  # type: ignore[no-untyped-call]
    add_texthawk_tokens(fast)
    return fast


def add_texthawk_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add, in place, the special tokens that ``tokenizer`` lacks, and set end, padding and chat template.

    For Qwen2's published tokenizer, which has the first three control tokens. Returns how many were added: the model's
    embedding has to grow by as many rows.
    """
    added: int = tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    added += tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in BOX_TOKENS])
    tokenizer.eos_token = TURN_END
    tokenizer.pad_token = END_OF_TEXT
    tokenizer.chat_template = CHAT_TEMPLATE
    return added


def _merge_characters(characters: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary (byte-level spelling to id) and merges that make each character one token and nothing else.

    The first byte of a UTF-8 character never continues another, so a beginning grows inside one character only.
    """
    letters = _byte_letters()
    vocabulary = {letter: byte for byte, letter in enumerate(letters)}
    spelled = ["".join(letters[byte] for byte in character.encode()) for character in characters]
    longest = max((len(word) for word in spelled), default=0)
    merges: list[tuple[str, str]] = []
    for length in range(2, longest + 1):  # all beginnings of two bytes, then what grows from them
        for prefix in dict.fromkeys(word[:length] for word in spelled if len(word) >= length):
            vocabulary[prefix] = len(vocabulary)
            merges.append((prefix[:-1], prefix[-1]))
    return vocabulary, merges


def _byte_letters() -> list[str]:
    """How byte-level BPE writes each byte value: as its Latin-1 letter if that is visible, else from U+0100 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(spare)) for byte in range(256)]
