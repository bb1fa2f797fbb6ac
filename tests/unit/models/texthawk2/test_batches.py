"""Conversations as tokens: pictures where the first question is, answers alone to be learnt."""

from __future__ import annotations

import torch
from PIL import Image

from models.families.texthawk2.tiling import image_tokens
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.training.texthawk2.batches import IGNORE, Encoder, collate
from models.training.texthawk2.synth.charset import CHINESE
from models.training.texthawk2.synth.example import Example

TOKENIZER = build_nano_tokenizer(CHINESE)
IMAGE, PAD = (TOKENIZER.convert_tokens_to_ids(token) for token in ("<image>", "<|endoftext|>"))
SMALL, WIDE = Image.new("RGB", (224, 224)), Image.new("RGB", (448, 224), "red")


def test_two_pictures_stand_one_after_the_other_before_the_question() -> None:
    example = Example(SMALL, "two", (("Read both images.", "one\ntwo"), ("And now?", "no")), others=(WIDE,))
    encoded = Encoder(TOKENIZER, 12, 6)(example)
    assert encoded.grids == [(1, 1), (1, 2)]
    assert len(encoded.tiles) == 1 + 3
    counts = [image_tokens(grid) for grid in encoded.grids]
    assert encoded.input_ids.count(IMAGE) == sum(counts)
    text = TOKENIZER.decode(encoded.input_ids)
    pictures = "".join(f"<vision_start>{'<image>' * count}<vision_end>" for count in counts)
    assert text.startswith(f"<|im_start|>user\n{pictures}Read both images.<|im_end|>")
    learnt = [label for label in encoded.labels if label != IGNORE]
    assert TOKENIZER.decode(learnt) == "one\ntwo<|im_end|>no<|im_end|>"


def test_batch_holds_the_pictures_of_all_rows_in_order() -> None:
    encoder = Encoder(TOKENIZER, 12, 6)
    one = encoder(Example(WIDE, "one", (("Read.", "a"),)))
    two = encoder(Example(SMALL, "two", (("Read.", "a"),), others=(WIDE,)), image_first=False)
    batch = collate([one, two], PAD)
    assert batch.grids == [(1, 2), (1, 1), (1, 2)]
    assert batch.tiles.shape[0] == 7
    assert [int(row) for row in (batch.input_ids == IMAGE).sum(1)] == [48, 64]
    assert torch.equal(batch.tiles[3], torch.from_numpy(two.tiles[0]))
