"""Any classifier of timm: timm:resnet50, timm:efficientnet_b0, timm:regnetx_002, …"""

import difflib

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def build(variant: str, num_classes: int) -> nn.Module:
    """The classifier timm calls `variant`, with random weights.

    The weights of its batch norms start at 1, as everywhere in the lab. timm's own ResNets start
    the last norm of each block at 0, which here `zero_init` asks for.

    Shape: (N, 3, H, W) -> (N, num_classes); some take images of one size only.

    Raises:
        LookupError: timm has no such classifier.
        ImportError: timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise ImportError('this network needs timm: pip install "normlab[models]"') from None
    if not timm.is_model(variant):
        close = difflib.get_close_matches(variant.partition(".")[0], timm.list_models(), n=1)
        rest = f"did you mean {close[0]!r}?" if close else "timm.list_models() names them all"
        raise LookupError(f'"timm:{variant}": no such classifier; {rest}')
    model: nn.Module = timm.create_model(variant, pretrained=False, num_classes=num_classes)
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.affine:
            nn.init.ones_(layer.weight)
    return model
