"""VGG with a norm after every convolution: the paper's, and one for small images.

Source: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556, table 1 (A, B, D, E). The
three large linear layers of the original are for maps of 7×7, which small images do not leave:
without their size, there is one linear layer behind an average over the map.
"""

import re
from collections import OrderedDict

from torch import nn

DEPTHS = {  # layers: convolutions of each of the five stages
    "11": (1, 1, 2, 2, 2),
    "13": (2, 2, 2, 2, 2),
    "16": (2, 2, 3, 3, 3),
    "19": (2, 2, 4, 4, 4),
}
WIDTH = 64  # channels of the first stage; they double up to eight times as many


MAP = 7  # pixels; of what enters the large linear layers


def build(variant: str, num_classes: int) -> nn.Module:
    """A network "layers", "layers:width" or "layers:width:features".

    Layers are called as in the papers: conv5_3, and after it norm5_3 and relu5_3. So
    `probe="norm5_3"` is the response before norm and ReLU of Wu and He 2018, figure 6, whose
    network is "16:64:4096": linear6 and linear7 with that many features, dropout of 0.5 after each
    as in the original, and linear8. Norms are after convolutions only.

    Args:
        variant: width is the channels of the first stage, 64 where it is not said; features are
            those of the large linear layers, and 0 is as without them.

    Shape: (N, 3, H, W) -> (N, num_classes); pooling rounds up, so that any H and W will do.

    Raises:
        LookupError: there is no such variant.

    >>> model = build("16:8", 10)
    >>> sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules())
    14
    >>> model.linear.in_features
    64
    """
    layers, width, features = _read(variant)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, depth in enumerate(DEPTHS[layers], start=1):
        for place in range(1, depth + 1):
            out = width * min(2 ** (stage - 1), 8)
            parts[f"conv{stage}_{place}"] = nn.Conv2d(channels, out, 3, padding=1)
            parts[f"norm{stage}_{place}"] = nn.BatchNorm2d(out)
            parts[f"relu{stage}_{place}"] = nn.ReLU(inplace=True)
            channels = out
        parts[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
    parts["average"] = nn.AdaptiveAvgPool2d(MAP if features else 1)
    parts["flatten"] = nn.Flatten()
    if features:
        channels *= MAP * MAP
        for place in (6, 7):
            parts[f"linear{place}"] = nn.Linear(channels, features)
            parts[f"relu{place}"] = nn.ReLU(inplace=True)
            parts[f"dropout{place}"] = nn.Dropout(0.5)
            channels = features
    parts["linear8" if features else "linear"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts).apply(_init)


def _read(variant: str) -> tuple[str, int, int]:
    """Layers, channels of the first stage, and features of the linear layers."""
    found = re.fullmatch(r"([0-9]+)(?::([0-9]{1,4})(?::([0-9]{1,5}))?)?", variant)
    layers, width, features = found.groups() if found else ("", None, None)
    if layers not in DEPTHS or width == "0" or int(width or WIDTH) > 4096:
        raise LookupError(
            f'"vgg:{variant}": there are {", ".join(f"vgg:{depth}" for depth in DEPTHS)}; with '
            'another width of the first stage, "vgg:16:16", and with large linear layers, '
            '"vgg:16:64:4096"'
        )
    return layers, int(width or WIDTH), int(features or 0)


def _init(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
