"""Rewrite a trained model into the form that runs fastest, for inference only.

Batch norms go into the convolutions and linear layers next to them, "x + depthwise(x)" becomes one convolution, and
1x1 convolutions become matrix products. Exact in real numbers; in float32 logits move by rounding only (below 1e-4,
tested; measured in docs/models/dyn-perceiver.md). A folded model has other parameter names, so it is never saved.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.families.dyn_perceiver.backbones.resnet import Bottleneck
from models.families.dyn_perceiver.model import DynPerceiver
from models.layers.conv import Pointwise, ResidualDepthwise


def folded(model: DynPerceiver) -> DynPerceiver:
    """A copy in eval mode without batch norms; ``model`` is left as it is."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            _fold_sequence(module)
        elif isinstance(module, Bottleneck):
            _fold_bottleneck(module)
    for name, module in list(model.named_children()):
        if isinstance(module, ResidualDepthwise):
            setattr(model, name, module.folded())
    return model


def _fold_sequence(layers: nn.Sequential) -> None:
    position = 0
    while position + 1 < len(layers):
        first, second = layers[position], layers[position + 1]
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            layers[position] = fuse_conv_bn_eval(first, second)
            del layers[position + 1]
        elif isinstance(first, nn.Linear) and isinstance(second, nn.BatchNorm1d):
            layers[position] = fuse_linear_bn_eval(first, second)
            del layers[position + 1]
        elif isinstance(first, nn.BatchNorm1d) and isinstance(second, nn.Linear):
            _fold_norm_before_linear(first, second)
            del layers[position]
        else:
            position += 1
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d) and Pointwise.fits(layer):
            layers[position] = Pointwise(layer)


def _fold_bottleneck(block: Bottleneck) -> None:
    block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()  # type: ignore[assignment]
    block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()  # type: ignore[assignment]
    block.conv3, block.bn3 = fuse_conv_bn_eval(block.conv3, block.bn3), nn.Identity()  # type: ignore[assignment]


@torch.no_grad()
def _fold_norm_before_linear(norm: nn.BatchNorm1d, linear: nn.Linear) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    linear.bias.data += linear.weight @ (norm.bias - norm.running_mean * scale)
    linear.weight.data *= scale
