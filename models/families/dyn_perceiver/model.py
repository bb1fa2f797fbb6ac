"""Dynamic Perceiver: a convolutional feature branch, a latent branch that reads it, and four exits in order of cost.

Source: Dynamic Perceiver for Efficient Visual Recognition, arXiv 2306.11248, Sec. 3. Official code:
https://github.com/LeapLabTHU/Dynamic_Perceiver @ 0d2a629, whose parameter names and shapes are kept, so that its
published checkpoints load. Compared numerically in docs/models/dyn-perceiver.md.

Differs from the official code: the forward is cut at the exits, so that a sample which is sure at exit 1 never pays for
stages 3 and 4 of the feature branch; FLOPs are counted from outside (``flops.py``), not written to a file on
construction; feature maps are channels last in memory. The merge head has two forms, as the official variants have.

Legend: B batch, H W height and width of a feature map, C channels, L latent tokens, K classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.families.dyn_perceiver.backbones import Backbone
from models.families.dyn_perceiver.backbones.mobilenet_v3 import build_mobilenet_v3
from models.families.dyn_perceiver.backbones.regnet import build_regnet
from models.families.dyn_perceiver.backbones.resnet import build_resnet
from models.families.dyn_perceiver.config import NUM_EXITS, DynPerceiverConfig, RegNetConfig, ResNetConfig
from models.layers.conv import ResidualDepthwise
from models.layers.perceiver import CrossAttentionLayer, SelfAttentionLayer

State = tuple[Tensor, ...]
"""What a sample carries between exits, each tensor with B first and contiguous.

Before exit 1 (index 0): the normalised image (B, H, W, 3). Before the others: features (B, H, W, C), latents (B, L, C),
logits (B, K) of the last latent exit. After the last exit: nothing.
"""


class DynPerceiver(nn.Module):
    """Classifier with four exits: latent stage 3, latent stage 4, feature branch, and all of them merged."""

    def __init__(self, config: DynPerceiverConfig) -> None:
        super().__init__()
        self.config = config
        backbone = _build_backbone(config)
        self._add_feature_branch(backbone)
        self._add_latent_branch(backbone.channels)
        self._add_exits(backbone)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (B, 3, H, W) -> logits (B, K) of every exit, cheapest first. The plain twin of staging."""
        state: State = (images.permute(0, 2, 3, 1).contiguous(),)
        exits = []
        for index in range(NUM_EXITS):
            state, logits = self.run_stage(index, state)
            exits.append(logits)
        return tuple(exits)

    def run_stage(self, index: int, state: State) -> tuple[State, Tensor]:
        """Carry a batch from just before exit ``index`` (0-based) through it.

        Returns: the state before the next exit (empty after the last) and the logits (B, K) of this exit.
        """
        stage = (self._to_exit_1, self._to_exit_2, self._to_exit_3, self._to_exit_4)[index]
        return stage(*state)

    def _to_exit_1(self, images: Tensor) -> tuple[State, Tensor]:
        features = self._part("cnn_stem")(_channels_first(images))
        latents = self._read(1, self.latent.expand(images.shape[0], -1, -1), features)
        for number in (2, 3):
            features, latents = self._between_stages(number, features, latents)
        logits = self._part("early_classifier3")(latents.mean(1))
        return (_channels_last(features), latents, logits), logits

    def _to_exit_2(self, features: Tensor, latents: Tensor, logits: Tensor) -> tuple[State, Tensor]:
        x, latents = self._between_stages(4, _channels_first(features), latents)
        logits = self._part("classifier_att")(torch.cat((latents.mean(1), self._part("isc3")(logits)), 1))
        return (_channels_last(x), latents, logits), logits

    def _to_exit_3(self, features: Tensor, latents: Tensor, logits: Tensor) -> tuple[State, Tensor]:
        x = self._stage(4)(_channels_first(features))
        return (_channels_last(x), latents, logits), self._part("classifier_cnn")(x.mean((2, 3)))

    def _to_exit_4(self, features: Tensor, latents: Tensor, logits: Tensor) -> tuple[State, Tensor]:
        tokens = self._part("last_cross_att_z2x")(features.flatten(1, 2), latents)
        merged = torch.cat((tokens.mean(1), latents.mean(1), self._part("isc4")(logits)), 1)
        return (), self._part("classifier_merge")(merged)

    def _between_stages(self, number: int, features: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Feature stage ``number - 1``, fewer and wider latents, exchange both ways, latent stage ``number``."""
        features = self._stage(number - 1)(features)
        mixed = self._part("token_mixer", number - 2)(latents.transpose(1, 2)).transpose(1, 2)
        latents = self._part("token_expander", number - 2)(mixed)
        features = self._write(number, features, latents)
        return features, self._read(number, latents, features)

    def _write(self, number: int, features: Tensor, latents: Tensor) -> Tensor:
        """Every pixel looks at all latents."""
        height, width = features.shape[2:]
        tokens = self._part(f"cross_att{number}_z2x")(_channels_last(features).flatten(1, 2), latents)
        return _channels_first(tokens.unflatten(1, (height, width)))

    def _read(self, number: int, latents: Tensor, features: Tensor) -> Tensor:
        """Latents look at a coarse grid of the features, then at each other."""
        side = self.config.pool_side
        grid = functional.adaptive_avg_pool2d(self._part(f"dwc{number}_x2z")(features), side)
        latents = self._part(f"cross_att{number}_x2z")(latents, grid.flatten(2).transpose(1, 2))
        out: Tensor = self._part(f"self_att{number}")(latents)
        return out

    def _part(self, name: str, index: int | None = None) -> nn.Module:
        part = cast(nn.Module, self._modules[name])
        return part if index is None else cast(nn.ModuleList, part)[index]

    def _stage(self, number: int) -> nn.Module:
        """Feature stage 1 to 4. RegNet variants keep theirs in one container; that is how they were published."""
        if isinstance(self.config.backbone, RegNetConfig):
            return cast(nn.Module, self._part("cnn_body")._modules[f"block{number}"])
        return self._part(f"cnn_body_stage{number}")

    def _add_feature_branch(self, backbone: Backbone) -> None:
        self.cnn_stem = backbone.stem
        if isinstance(self.config.backbone, RegNetConfig):
            self.cnn_body = nn.ModuleDict({f"block{i}": stage for i, stage in enumerate(backbone.stages, 1)})
        else:
            for i, stage in enumerate(backbone.stages, 1):
                self.add_module(f"cnn_body_stage{i}", stage)

    def _add_latent_branch(self, channels: tuple[int, int, int, int, int]) -> None:
        config = self.config
        self.latent = nn.Parameter(torch.empty(config.num_latents, channels[0]).normal_(0.0, 0.02))
        for number, (width, heads, depth) in enumerate(
            zip(channels[:4], config.num_heads, config.latent_depths, strict=True), 1
        ):
            reader = CrossAttentionLayer(width, width, key_positions=config.pool_side**2)
            layers = (SelfAttentionLayer(heads, width, config.latent_widening) for _ in range(depth))
            self.add_module(f"dwc{number}_x2z", ResidualDepthwise(width, 7))
            self.add_module(f"cross_att{number}_x2z", reader)
            self.add_module(f"self_att{number}", nn.Sequential(*layers))
            if number > 1:
                self.add_module(f"cross_att{number}_z2x", CrossAttentionLayer(width, width, inner=width // 8))
        self.last_cross_att_z2x = CrossAttentionLayer(channels[4], channels[3], inner=channels[4] // 8)
        pairs = range(3)
        self.token_mixer = nn.ModuleList(_norm_linear(config.tokens[i], config.tokens[i + 1]) for i in pairs)
        self.token_expander = nn.ModuleList(_norm_linear(channels[i], channels[i + 1]) for i in pairs)

    def _add_exits(self, backbone: Backbone) -> None:
        classes, (third, fourth, out) = self.config.num_classes, backbone.channels[2:]
        self.early_classifier3 = nn.Linear(third, classes)
        self.isc3 = _logits_to_features(classes, fourth)
        self.isc4 = _logits_to_features(classes, fourth)
        self.classifier_att = nn.Linear(2 * fourth, classes)
        merged = out + 2 * fourth
        if backbone.head_width is None:
            self.classifier_cnn: nn.Module = nn.Linear(out, classes)
            self.classifier_merge = nn.Sequential(nn.BatchNorm1d(merged), nn.Linear(merged, classes))
        else:
            self.classifier_cnn = nn.Sequential(*_hidden_head(out, backbone.head_width, classes))
            head = _hidden_head(merged, backbone.head_width, classes)
            self.classifier_merge = nn.Sequential(nn.BatchNorm1d(merged), *head)


def _build_backbone(config: DynPerceiverConfig) -> Backbone:
    if isinstance(config.backbone, RegNetConfig):
        return build_regnet(config.backbone)
    if isinstance(config.backbone, ResNetConfig):
        return build_resnet(config.backbone)
    return build_mobilenet_v3(config.backbone)


def _norm_linear(size_in: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(size_in), nn.Linear(size_in, size_out))


def _logits_to_features(classes: int, width: int) -> nn.Sequential:
    """The exits' "self-cascade": an earlier exit's logits as an input of the next."""
    return nn.Sequential(nn.Linear(classes, width), nn.BatchNorm1d(width), nn.ReLU())


def _hidden_head(width: int, hidden: int, classes: int) -> list[nn.Module]:
    return [nn.Linear(width, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes)]


def _channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view whose memory stays channels last."""
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) -> contiguous (B, H, W, C); a view when the memory is channels last already."""
    return x.permute(0, 2, 3, 1).contiguous()
