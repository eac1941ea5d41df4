"""Layers in the place of a norm that average nothing."""

from typing import Any

import torch
from torch import Tensor, nn

from normlab.checks import check_tensors, refuse_mask
from normlab.layer import Norm
from normlab.norms.elements import begun, finished, scaled

NOTHING = "n c ... -> n c ..."  # what is averaged


class NoNorm(Norm, name="none", aliases=("nn",)):
    """The input as it is: what a network does without norms.

    y = activation(x + residual)

    Shape: (N, C, ...) -> (N, C, ...).

    Source: the control of the group norm paper's figure 6.

    >>> x = torch.randn(2, 3)
    >>> bool((NoNorm(3)(x) == x).all())
    True
    """

    pattern = NOTHING
    can_recompute = False

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **{**options, "affine": False})

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        self.check_input(x)
        refuse_mask(self.name, mask)
        check_tensors(x, residual, self.activation)
        return finished(self, x, x, residual)


class DynamicTanh(Norm, name="dyt"):
    """A tanh of learned steepness: bounded as a norm's output is, without statistics.

    y = tanh(alpha * x) * weight + bias

    `alpha` is one learned number for the whole layer, (1,). There is no variance, so `eps` has no
    part in y.

    Args:
        num_channels: C, the size of axis 1.
        alpha: where the learned one starts.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: Zhu et al. 2025, https://arxiv.org/abs/2503.10622, eq. 3.

    >>> x = torch.randn(2, 3, 4)
    >>> torch.allclose(DynamicTanh(3, alpha=2.0)(x), torch.tanh(2 * x))
    True
    """

    pattern = NOTHING
    can_recompute = False

    def __init__(self, num_channels: int, *, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.start = alpha
        self.alpha = one_number(alpha, options)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        wide = begun(self, x, residual, mask)
        y = torch.tanh(wide * self.alpha.to(wide.dtype))
        return finished(self, x, scaled(self, y), residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.start)


class Derf(Norm, name="derf"):
    """The error function with learned steepness and shift, in the place of a norm.

    y = erf(alpha * x + shift) * weight + bias

    `alpha` and `shift` are one learned number each for the whole layer, (1,); s in the paper is
    `shift`. There is no variance, so `eps` has no part in y.

    Args:
        num_channels: C, the size of axis 1.
        alpha, shift: where the learned ones start.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: Chen et al. 2025, https://arxiv.org/abs/2512.10938.

    >>> x = torch.randn(2, 3, 4)
    >>> torch.allclose(Derf(3)(x), torch.erf(x / 2))
    True
    """

    pattern = NOTHING
    can_recompute = False

    def __init__(
        self, num_channels: int, *, alpha: float = 0.5, shift: float = 0.0, **options: Any
    ) -> None:
        super().__init__(num_channels, **options)
        self.start = (alpha, shift)
        self.alpha, self.shift = one_number(alpha, options), one_number(shift, options)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        wide = begun(self, x, residual, mask)
        y = torch.erf(wide * self.alpha.to(wide.dtype) + self.shift.to(wide.dtype))
        return finished(self, x, scaled(self, y), residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for parameter, start in zip((self.alpha, self.shift), self.start):
            nn.init.constant_(parameter, start)


def one_number(value: float, options: dict[str, Any]) -> nn.Parameter:
    """A learned number, (1,), where the layer's options say that parameters are."""
    place: Any = {"device": options.get("device"), "dtype": options.get("dtype")}
    return nn.Parameter(torch.full((1,), value, **place))
