"""What vLLM knows about a folder. ``python -m models.families.vllm.vllm_describe FOLDER`` prints it as a line of JSON.

Then, for each line ``HEIGHT WIDTH`` that it reads, the number of tokens of such a picture.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.families.vllm.prompts import FolderPrompts

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "OMP_NUM_THREADS": "1",
}
_SIZES = ((64, 64), (64, 512), (512, 64), (480, 640), (1024, 1024), (1600, 1200))
"""(height, width) of pictures that are tried."""


@dataclass(frozen=True)
class Model:
    """A folder, and vLLM's processor of it."""

    config: dict[str, Any]
    processor: Any
    ids: Sequence[int]
    """Of a conversation with one picture."""

    def tokens_of(self, height: int, width: int) -> int:
        """Tokens of a picture. Raises: ValueError: the processor does not take it."""
        return self.placed(height, width)[1]

    def placed(self, height: int, width: int) -> tuple[Sequence[int], int, int]:
        """The ids with such a picture in its place, the number of its tokens, and where they begin."""
        from PIL import Image

        return self._applied({"image": [Image.new("RGB", (width, height))]})

    def _applied(self, data: Mapping[str, Any]) -> tuple[Sequence[int], int, int]:
        from vllm.multimodal.processing.context import TimingContext
        from vllm.multimodal.processing.inputs import ProcessorInputs

        inputs = ProcessorInputs(prompt=list(self.ids), mm_data_items=self.processor.info.parse_mm_data(data))
        made = self.processor.apply(inputs, TimingContext(enabled=False))
        (place,) = made["mm_placeholders"]["image"]
        return made["prompt_token_ids"], place.length, place.offset

    def largest(self) -> int:
        """Tokens of the picture that vLLM itself plans with."""
        made = self.processor.get_dummy_mm_inputs({"image": 1})
        return max(int(place.length) for place in made["mm_placeholders"]["image"])


def describe(folder: Path) -> tuple[dict[str, Any], Model]:
    """Facts as ``family.resolve`` needs them.

    Raises: ValueError: vLLM cannot serve it here.
    """
    architecture = _architecture(folder)
    _import(architecture)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    model_config = EngineArgs(model=str(folder), dtype="float32", generation_config="vllm").create_model_config()
    if not model_config.is_multimodal_model:
        raise ValueError(f"{architecture} takes no pictures")
    processor = MULTIMODAL_REGISTRY.create_processor(model_config)
    if "image" not in processor.info.get_supported_mm_limits():
        raise ValueError(f"{architecture} takes no pictures")
    config = {"architecture": architecture, **_talk(folder, processor, model_config)}
    ids = FolderPrompts(folder, config).encoded([("user", [None, "x"])])
    model = Model(config, processor, ids)
    config["image_id"] = _image_id(model)
    counts = {model.tokens_of(*size) for size in _SIZES}
    largest = max(model.largest(), *counts)
    config["image_tokens"] = largest if {largest} == counts else None
    return {
        "config": config,
        "largest_image": largest,
        "max_model_len": model_config.max_model_len,
        "kv_values_per_token": _kv_values(model_config),
    }, model


def _architecture(folder: Path) -> str:
    try:
        (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/config.json names no architecture ({error!r})") from None
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json; save its tokenizer as a fast one there")
    return str(name)


def _import(architecture: str) -> None:
    """Load vLLM's module, which tells why it cannot be loaded; vLLM itself tells only that it cannot."""
    try:
        from vllm import ModelRegistry, __version__
    except ImportError as error:
        raise ValueError(f"vLLM cannot be imported: {error}") from None
    if architecture not in ModelRegistry.models:
        raise ValueError(f"vLLM {__version__} knows no {architecture}")
    try:
        ModelRegistry.models[architecture].load_model_cls()
    except ImportError as error:
        raise ValueError(f"vLLM's {architecture} cannot be imported: {_in_a_line(error)}") from None


def _talk(folder: Path, processor: Any, model_config: Any) -> dict[str, Any]:
    """How conversations are written."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.renderers.hf import resolve_chat_template, resolve_chat_template_content_format

    tokenizer = processor.info.get_tokenizer()
    template = resolve_chat_template(tokenizer, None, None, model_config=model_config)
    if template is None:
        raise ValueError(f"{folder} has no chat template; put the model's own there (chat_template.jinja)")
    written = resolve_chat_template_content_format(None, None, "auto", tokenizer, model_config=model_config)
    network = ModelRegistry.models[model_config.architecture].load_model_cls()
    marks = {network.get_placeholder_str("image", number) for number in (1, 2)} if written == "string" else {""}
    if len(marks) > 1:
        raise ValueError(f"{model_config.architecture} numbers its pictures, and the folder's template does not")
    return {
        "template": template,
        "content": written,
        "image_text": marks.pop(),
        "special_tokens": {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)},
        "end_id": tokenizer.eos_token_id,
    }


def _kv_values(model_config: Any) -> int:
    """Keys and values of all layers; an upper bound where some of them keep less."""
    layers, heads = model_config.get_total_num_hidden_layers(), model_config.get_total_num_kv_heads()
    return int(2 * layers * heads * model_config.get_head_size())


def _image_id(model: Model) -> int:
    """The token in whose place vLLM puts a picture."""
    made, length, start = model.placed(*_SIZES[0])
    number = model.ids[start] if start < len(model.ids) else -1
    if list(model.ids[start + 1 :]) != list(made[start + length :]) or model.ids.count(number) != 1:
        raise ValueError(f"{model.config['architecture']} does not mark a picture's place by one token of its own")
    return int(number)


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


def _main(folder: str) -> None:
    # What libraries print goes elsewhere.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ.update(_ENVIRONMENT)
    try:
        facts, model = describe(Path(folder))
    except Exception as error:  # whatever vLLM and transformers raise about a folder
        answers.write(json.dumps({"error": _in_a_line(error) or repr(error)}) + "\n")
        return
    answers.write(json.dumps(facts) + "\n")
    for line in sys.stdin:
        height, width = map(int, line.split())
        try:
            answer: dict[str, Any] = {"tokens": model.tokens_of(height, width)}
        except Exception as error:
            answer = {"error": f"the model takes no picture of {width}x{height}: {_in_a_line(error)}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
