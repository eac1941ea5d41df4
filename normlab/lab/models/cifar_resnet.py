"""The ResNet for small images of He et al. 2015, section 4.2: 6n+2 layers in three stages.

Source: https://arxiv.org/abs/1512.03385. Shortcuts carry no parameters: where the map halves and
the channels double, every second pixel is taken and the new channels are zero.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)  # channels of the stages


def build(variant: str, num_classes: int) -> nn.Module:
    """A network of `variant` layers: 8, 14, 20, 32, 44, 56, 110, or any other 6n+2.

    Shape: (N, 3, H, W) -> (N, num_classes); the last map is a quarter of H and W.

    Raises:
        LookupError: not 6n+2 layers.

    >>> sum(p.numel() for p in build("20", 10).parameters())
    269722
    """
    layers = int(variant) if variant.isdigit() else 0
    if layers < 8 or (layers - 2) % 6:
        raise LookupError(
            f'"cifar_resnet:{variant}": the number of layers is 6n+2: 8, 14, 20, 26, 32, …'
        )
    from torchvision.models.resnet import BasicBlock

    blocks: list[nn.Module] = []
    channels = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        for block in range((layers - 2) // 6):
            stride = 2 if stage and not block else 1
            shortcut = None if stride == 1 else _Subsample(width - channels)
            blocks.append(BasicBlock(channels, width, stride, shortcut))
            channels = width
    model = nn.Sequential(
        nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(WIDTHS[0]),
        nn.ReLU(inplace=True),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )
    return model.apply(_init)


class _Subsample(nn.Module):
    """Every second pixel, and `extra` channels of zeros."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))


_kaiming = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        _kaiming(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
