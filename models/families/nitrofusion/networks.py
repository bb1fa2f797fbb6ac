"""The networks of SDXL, read from a folder exactly, or made with random weights and written as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models.checkpoint import load_into, load_pretrained
from models.contract import Variant
from models.families.nitrofusion.family import MAX_TOKENS, unet_file

_VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
_CLIPS = {"": CLIPTextModel, "_2": CLIPTextModelWithProjection}
_IN_OLD_FOLDERS = ("text_model.embeddings.position_ids",)


class Networks(nn.Module):
    """``vae`` computes in float32 whatever the others do: SDXL's overflows at half precision."""

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, clips: list[Any], tokenizers: list[CLIPTokenizer]
    ) -> None:
        super().__init__()
        self.unet, self.vae = unet, vae
        self.clips: Any = nn.ModuleList(clips)
        self.tokenizers = tokenizers

    def ids(self, prompt: str) -> list[Tensor]:
        """Tokens of a prompt for each encoder, (1, 77). Raises: ValueError: there are more."""
        for tokenizer in self.tokenizers:
            if (count := len(tokenizer(prompt).input_ids)) > MAX_TOKENS:
                raise ValueError(f"prompt has {count} tokens; limit is {MAX_TOKENS}; shorten it")
        padded = (each(prompt, padding="max_length", max_length=MAX_TOKENS) for each in self.tokenizers)
        return [torch.tensor([each.input_ids]) for each in padded]

    def encode(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings of a prompt (1, 77, C), and of the whole of it (1, C)."""
        device = self.unet.device
        read = [clip(each.to(device), output_hidden_states=True) for clip, each in zip(self.clips, ids, strict=True)]
        return torch.cat([each.hidden_states[-2] for each in read], dim=-1), read[-1].text_embeds


def build(variant: Variant, device: str = "cpu", random_weights: bool = False, dtype: str = "float32") -> Networks:
    """Read every network, or draw it.

    Raises: ValueError, OSError: weights that are missing or of another network.
    """
    kind, folder = getattr(torch, dtype), variant.weights
    if random_weights or folder is None:
        return _random(variant).to(device).requires_grad_(False).eval()
    with torch.device("meta"):
        unet, vae = _convolutional(variant)
    load_into(unet, _read(folder / unet_file(variant.id.rpartition(":")[2]), kind))
    load_into(vae, _read(folder / _VAE_FILE, torch.float32))
    clips = [
        load_pretrained(architecture, folder / f"text_encoder{number}", kind, unused=_IN_OLD_FOLDERS)
        for number, architecture in _CLIPS.items()
    ]
    tokenizers = [CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}") for number in _CLIPS]
    networks = Networks(unet, vae, clips, tokenizers)
    return networks.to(device).requires_grad_(False).eval()


def _convolutional(variant: Variant) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    config = variant.config
    return UNet2DConditionModel.from_config(config["unet"]), AutoencoderKL.from_config(config["vae"])


def _read(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        return {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _random(variant: Variant) -> Networks:
    letters = ByteLevel.alphabet()
    words = [*sorted(letters), *(f"{letter}</w>" for letter in sorted(letters)), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizers = [CLIPTokenizer(vocabulary, [], model_max_length=MAX_TOKENS) for _ in _CLIPS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clips = [
            architecture(CLIPTextConfig.from_dict(variant.config[f"text_encoder{number}"]))
            for number, architecture in _CLIPS.items()
        ]
        return Networks(*_convolutional(variant), clips, tokenizers)


def save(networks: Networks, variant: Variant, folder: Path) -> None:
    """Write a folder of SDXL with NitroFusion's UNet, as ``resolve`` and ``build`` read it."""
    for part in ("unet", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(variant.config[part], indent=2))
    (folder / "model_index.json").write_text(json.dumps(variant.config["model_index"]))
    save_file(networks.unet.state_dict(), folder / unet_file(variant.id.rpartition(":")[2]))
    save_file(networks.vae.state_dict(), folder / _VAE_FILE)
    for number, clip, tokenizer in zip(_CLIPS, networks.clips, networks.tokenizers, strict=True):
        clip.save_pretrained(folder / f"text_encoder{number}")
        tokenizer.save_pretrained(folder / f"tokenizer{number}")
