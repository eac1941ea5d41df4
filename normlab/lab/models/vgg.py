"""VGG for small images: a norm after every convolution, one linear layer behind the last pooling.

Source: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556, table 1 (A, B, D, E). The
three large linear layers of the original are for maps of 7×7, which small images do not leave.
"""

from collections import OrderedDict

from torch import nn

DEPTHS = {  # layers: convolutions of each of the five stages
    "11": (1, 1, 2, 2, 2),
    "13": (2, 2, 2, 2, 2),
    "16": (2, 2, 3, 3, 3),
    "19": (2, 2, 4, 4, 4),
}
WIDTH = 64  # channels of the first stage; they double up to eight times as many


def build(variant: str, num_classes: int) -> nn.Module:
    """A network of `variant` layers, or "layers:width" with other channels in the first stage.

    Layers are called as in the papers: conv5_3, and after it norm5_3 and relu5_3. So
    `probe="norm5_3"` is the response before norm and ReLU of Wu and He 2018, figure 6.

    Shape: (N, 3, H, W) -> (N, num_classes); pooling rounds up, so that any H and W will do.

    Raises:
        LookupError: there is no such variant.

    >>> model = build("16:8", 10)
    >>> sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules())
    14
    >>> model.linear.in_features
    64
    """
    layers, _, width = variant.partition(":")
    if layers not in DEPTHS or (width and not (width.isdecimal() and 0 < int(width) <= 4096)):
        raise LookupError(
            f'"vgg:{variant}": there are {", ".join(f"vgg:{depth}" for depth in DEPTHS)}, and with '
            'another width of the first stage, "vgg:16:16"'
        )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, depth in enumerate(DEPTHS[layers], start=1):
        for place in range(1, depth + 1):
            out = int(width or WIDTH) * min(2 ** (stage - 1), 8)
            parts[f"conv{stage}_{place}"] = nn.Conv2d(channels, out, 3, padding=1)
            parts[f"norm{stage}_{place}"] = nn.BatchNorm2d(out)
            parts[f"relu{stage}_{place}"] = nn.ReLU(inplace=True)
            channels = out
        parts[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
    parts["average"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts).apply(_init)


def _init(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
