"""Layers in the place of a norm that average nothing."""

from typing import Any

from torch import Tensor

from normlab.checks import check_tensors
from normlab.layer import Norm
from normlab.ops import ACTIVATIONS


class NoNorm(Norm, name="none", aliases=("nn",)):
    """The input as it is: what a network does without norms.

    y = activation(x + residual)

    Shape: (N, C, ...) -> (N, C, ...).

    Source: the control of the group norm paper's figure 6.

    >>> x = torch.randn(2, 3)
    >>> bool((NoNorm(3)(x) == x).all())
    True
    """

    pattern = "n c ... -> n c ..."
    can_recompute = False

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **{**options, "affine": False})

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self.check_input(x)
        check_tensors(x, residual, self.activation)
        return ACTIVATIONS[self.activation or "none"][0](x if residual is None else x + residual)
