"""The network of the TensorFlow group norm repository: four strided convolutions, four linear.

Source: https://github.com/shaohua0116/Group-Normalization-Tensorflow. As there, norms follow the
activation and dropout follows the norm. Unlike there, dropout and batch statistics are off in
evaluation and the logits pass no activation.
"""

from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (64, 128, 256, 512)
FEATURES = (512, 128, 32)


def build(variant: str, num_classes: int) -> nn.Module:
    """The network; it has no variants.

    Shape: (N, 3, H, W) -> (N, num_classes). The last map, H/16 by W/16, is pooled to 2 by 2, which
    leaves 32-pixel images as they are.

    Raises:
        LookupError: a variant was asked for.

    >>> sum(isinstance(layer, nn.BatchNorm2d) for layer in build("", 10))
    4
    """
    if variant:
        raise LookupError(f'"convnet:{variant}": convnet has no variants; write convnet')
    layers: list[nn.Module] = []
    channels = 3
    for width in CHANNELS:
        layers += [
            _PadSame(),
            nn.Conv2d(channels, width, 4, stride=2),
            nn.LeakyReLU(0.2),
            nn.BatchNorm2d(width),
            nn.Dropout(0.5),
        ]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    features = 4 * channels
    for width in FEATURES:
        layers += [nn.Linear(features, width), nn.LeakyReLU(0.2)]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


class _PadSame(nn.Module):
    """Pads so that a 4×4 convolution of stride 2 halves the map, rounding up."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1 + x.shape[3] % 2, 1, 1 + x.shape[2] % 2))
