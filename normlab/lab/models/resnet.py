"""The ResNet of the group norm paper: torchvision's blocks and names, any width.

Source: He et al. 2015, https://arxiv.org/abs/1512.03385, table 1, with the stride in the 3×3
convolution of a bottleneck; initial values as in Wu and He 2018, https://arxiv.org/abs/1803.08494,
section 4.1: convolutions normal by their outputs, the linear layer normal with std 0.01. Weights of
norms are 1, and those of the last norm of each block 0 where `Experiment.zero_init` says so.
"""

from collections import OrderedDict
from typing import Any

from torch import nn

# layers: the block of torchvision, and how many of them each stage has
DEPTHS: dict[str, tuple[str, tuple[int, ...]]] = {
    "18": ("BasicBlock", (2, 2, 2, 2)),
    "34": ("BasicBlock", (3, 4, 6, 3)),
    "50": ("Bottleneck", (3, 4, 6, 3)),
    "101": ("Bottleneck", (3, 4, 23, 3)),
    "152": ("Bottleneck", (3, 8, 36, 3)),
}
WIDTH = 64  # channels of the stem and of the first stage, which double with every stage


def build(variant: str, num_classes: int) -> nn.Module:
    """A network of `variant` layers, or "layers:width" with other channels in the first stage.

    Parts are called as in torchvision's, whose weights it loads.

    Shape: (N, 3, H, W) -> (N, num_classes); the last map is 1/32 of H and W, rounded up.

    Raises:
        LookupError: there is no such variant.
        ImportError: torchvision is not installed.

    >>> sum(p.numel() for p in build("50", 1000).parameters())
    25557032
    >>> build("50:16", 10).fc.in_features
    512
    """
    layers, _, width = variant.partition(":")
    if layers not in DEPTHS or (width and not (width.isdecimal() and 0 < int(width) <= 4096)):
        raise LookupError(
            f'"resnet:{variant}": there are {", ".join(f"resnet:{depth}" for depth in DEPTHS)}, '
            'and with another width of the first stage, "resnet:50:16"'
        )
    try:
        from torchvision.models import resnet
    except ImportError:
        raise ImportError('this network needs torchvision: pip install "normlab[lab]"') from None
    kind, depths = DEPTHS[layers]
    block, channels = getattr(resnet, kind), int(width or WIDTH)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        bn1=nn.BatchNorm2d(channels),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    for stage, depth in enumerate(depths):
        planes = int(width or WIDTH) * 2**stage
        strides = [2 if stage else 1] + [1] * (depth - 1)
        blocks = []
        for stride in strides:
            blocks.append(_block(block, channels, planes, stride))
            channels = planes * block.expansion
        parts[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts).apply(_init)


def _block(block: Any, channels: int, planes: int, stride: int) -> nn.Module:
    """A residual block, with a 1×1 convolution on its shortcut where shapes differ."""
    out = planes * block.expansion
    if stride == 1 and channels == out:
        return block(channels, planes)
    shortcut = nn.Sequential(
        nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
    )
    return block(channels, planes, stride, shortcut)


def _init(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
