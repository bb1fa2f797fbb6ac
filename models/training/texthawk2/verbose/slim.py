"""A smaller copy of a nano model: narrower MLPs, one layer of the language model less, no Chinese characters.

Of each MLP those hidden units stay that move its output most on given inputs. What is left does not see and speak as
before at once, and has to be trained on; it begins much nearer to that than fresh weights do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.training.texthawk2.nano import Sizes, config_for

SMALL = Sizes(vision_mlp=320, resampler_mlp=192, text_mlp=192, text_layers=3)
"""Of texthawk2-nano's 768, 512, 704 and 4: 3.96 million parameters instead of 7.04."""
DROPPED_LAYER = 2
"""Of the language model's four: neither reads the picture first nor spells the answer."""
_ROWS, _COLUMNS = ("fc1", "gate_proj", "up_proj"), ("fc2", "down_proj")
_VOCABULARY = ("embed_tokens", "lm_head")
_TEXT_LAYERS = "language_model.model.layers"


def slim(
    model: TextHawk2ForConditionalGeneration,
    tokenizer: Any,
    smaller_tokenizer: Any,
    run: Callable[[TextHawk2ForConditionalGeneration], object],
    sizes: Sizes = SMALL,
) -> TextHawk2ForConditionalGeneration:
    """The smaller copy. ``run``: has ``model`` compute something typical, during which its hidden units are watched.

    ``smaller_tokenizer``: all its tokens are ``tokenizer``'s too.
    """
    small = TextHawk2ForConditionalGeneration(config_for(smaller_tokenizer, sizes))
    needed = small.state_dict()
    moved = _moved(model, run)
    words, fewer = tokenizer.get_vocab(), smaller_tokenizer.get_vocab()
    rows = torch.tensor([words[token] for token in sorted(fewer, key=fewer.__getitem__)])
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if (new := _name_in_fewer_layers(name, model, small)) is not None:
            state[new] = _cut(name, tensor, moved, rows, needed[new].shape)
    small.load_state_dict(state)
    return small


def _moved(
    model: TextHawk2ForConditionalGeneration, run: Callable[[TextHawk2ForConditionalGeneration], object]
) -> dict[str, Tensor]:
    """By the name of an MLP, how much each of its hidden units moves the output: mean square times column norm."""
    found: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        squares = inputs[0].detach().float().square().flatten(0, -2).mean(0)
        moved = squares * layer.weight.detach().float().square().sum(0)
        found[name] = found[name] + moved if name in found else moved

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            mlp, _, layer = name.rpartition(".")
            if mlp.endswith(".mlp") and layer in _COLUMNS:
                hooks.callback(module.register_forward_pre_hook(partial(watch, mlp)).remove)
        run(model)
    return found


def _name_in_fewer_layers(
    name: str, model: TextHawk2ForConditionalGeneration, small: TextHawk2ForConditionalGeneration
) -> str | None:
    """What a parameter is called when one layer is left out; None: it was in that layer."""
    if not name.startswith(_TEXT_LAYERS) or len(model.language_model.model.layers) == len(
        small.language_model.model.layers
    ):
        return name
    number, _, rest = name.removeprefix(f"{_TEXT_LAYERS}.").partition(".")
    if int(number) == DROPPED_LAYER:
        return None
    return f"{_TEXT_LAYERS}.{int(number) - (int(number) > DROPPED_LAYER)}.{rest}"


def _cut(name: str, tensor: Tensor, moved: Mapping[str, Tensor], rows: Tensor, shape: torch.Size) -> Tensor:
    """What is left of a parameter: rows or columns of the units that stay, rows of the tokens that stay."""
    owner, _, kind = name.rpartition(".")
    mlp, _, layer = owner.rpartition(".")
    if layer in _VOCABULARY:
        return tensor[rows]
    if mlp in moved and layer in _ROWS:
        return tensor[_strongest(moved[mlp], shape[0])]
    if mlp in moved and layer in _COLUMNS and kind == "weight":
        return tensor[:, _strongest(moved[mlp], shape[1])]
    return tensor


def _strongest(moved: Tensor, count: int) -> Tensor:
    """Their places, in order."""
    return moved.topk(count).indices.sort().values
