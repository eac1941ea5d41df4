"""Weight standardization: convolutions whose filters have mean 0 and variance 1."""

from torch import nn

from normlab.surgery.layers import Where
from normlab.surgery.weights import WeightStandardization, reparametrize

__all__ = ["WeightStandardization", "weight_standardize"]


def weight_standardize(
    model: nn.Module, *, where: Where | None = None, eps: float = 1e-5
) -> nn.Module:
    """Standardize the weight of every convolution, and return the model.

    y = conv(x, (w - mean) / sqrt(var + eps)),   one mean and variance per filter

    `reparametrize` with "ws", which says more. Saved, w is "parametrizations.weight.original".

    Args:
        where: names as a glob ("layer1.*"), or a predicate of (name, layer); None is every one.
        eps: added to the variance; 1e-5 as in the paper. timm's StdConv2d is this with 1e-6.

    Raises:
        SurgeryError: no convolution, one value per filter, or a weight that something else makes;
            all such layers are named, and the model is unchanged.

    Source: Qiao et al. 2019, https://arxiv.org/abs/1903.10520, eq. 7 to 9.

    >>> conv = weight_standardize(nn.Conv2d(3, 8, 3))
    >>> conv.weight.mean((1, 2, 3)).abs().max().item() < 1e-6
    True
    """
    return reparametrize(model, "ws", where=where, eps=eps)
