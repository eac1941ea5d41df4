"""Norms that divide by the size of a response, and norms that are an activation as well."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab import functional, ops
from normlab import pattern as patterns
from normlab.checks import check_whole
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm, count_batch
from normlab.norms.elements import (
    begun,
    finished,
    of_channels,
    per_channel,
    per_sample,
    scaled,
)
from normlab.norms.pointwise import NOTHING, one_number
from normlab.norms.sample import Grouped, GroupNorm, InstanceNorm

LEARNED_EPS = 1e-4  # where it starts; Singh and Krishnan 2020, section 3


class LocalResponseNorm(Norm, name="local_response", aliases=("lrn",)):
    """Division by the strength of neighbouring channels at the same position.

    y = x / (k + alpha * mean(x²))^beta * weight + bias,   mean over `size` channels around x's

    Channels beyond the first and last count as 0. Unlike torch's layer, this one learns weight and
    bias, as any norm of the catalogue; with `affine=False` it is torch's. `k` is what keeps the
    root from 0: `eps` has no part in y.

    Args:
        num_channels: C, the size of axis 1.
        size: channels in a window; of an even number, one more lies before than after.
        alpha, beta, k: as in torch. The paper's alpha is not divided by size: alpha = size · 1e-4,
            k = 2 are its values.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: size below 1.

    Source: Krizhevsky et al. 2012, https://papers.nips.cc/paper/4824, section 3.3.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> theirs = torch.nn.LocalResponseNorm(3)
    >>> torch.allclose(LocalResponseNorm(6, size=3)(x), theirs(x), atol=1e-6)
    True
    """

    pattern = NOTHING  # a window is no pattern
    can_recompute = False
    spec_options = {"": "size"}

    def __init__(
        self,
        num_channels: int,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(num_channels, **options)
        check_whole("size", size)
        if size < 1:
            raise ValueError(f"size must be at least 1 channel, got {size}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        wide = begun(self, x, residual, mask, ops.statistics_dtype(x))
        around = [0, 0] * (x.dim() - 2) + [self.size // 2, (self.size - 1) // 2]
        padded = F.pad(wide.square(), around)
        total = padded.narrow(1, 0, self.num_channels)
        for first in range(1, self.size):
            total = total + padded.narrow(1, first, self.num_channels)
        y = wide * (self.k + total * (self.alpha / self.size)).pow(-self.beta)
        return finished(self, x, scaled(self, y), residual)

    def extra_repr(self) -> str:
        own = f"size={self.size}, alpha={self.alpha:g}, beta={self.beta:g}, k={self.k:g}"
        return f"{super().extra_repr()}, {own}"


class FilterResponseNorm(Norm, name="filter_response", aliases=("frn",)):
    """Division by the root mean square of a sample's channel, then a learned threshold.

    y = max(x / sqrt(mean(x²) + eps) * weight + bias, tau),   statistics "n c ... -> n c"

    `tau` is a parameter (C,), starting at 0, where the maximum is a ReLU. It takes the place of the
    activation after the norm; one that is given all the same comes after it. At one position x is
    divided by its own size, so eps decides what is left of it: there the paper learns it, as
    eps + |learned_eps|.

    Args:
        num_channels: C, the size of axis 1.
        threshold: learn tau; False leaves the maximum out.
        learn_eps: learn learned_eps, one number (1,), starting at 1e-4.
        eps: the paper's is 1e-6.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: Singh and Krishnan 2020, https://arxiv.org/abs/1911.09737, section 3.

    >>> x = torch.randn(2, 3, 8)
    >>> y = FilterResponseNorm(3, threshold=False)(x)
    >>> torch.allclose(y.square().mean(2), torch.ones(2, 3), atol=1e-3)
    True
    """

    pattern = InstanceNorm.pattern
    center = False
    can_recompute = False

    def __init__(
        self,
        num_channels: int,
        *,
        threshold: bool = True,
        learn_eps: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_channels, **options)
        self.tau = for_channels(0.0, num_channels, options) if threshold else None
        self.learned_eps = one_number(LEARNED_EPS, options) if learn_eps else None

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        wide = begun(self, x, residual, mask, tau=self.tau)
        if self.learned_eps is None:
            y = functional.normalize(wide, self.pattern, eps=self.eps, center=False)
        else:
            _, square = ops.moments(wide, self.pattern, False)
            eps = self.eps + self.learned_eps.to(square.dtype).abs()
            y = wide * per_sample(torch.rsqrt(square + eps), wide)
        y = scaled(self, y)
        if self.tau is not None:
            y = torch.maximum(y, per_channel(self.tau, y))
        return finished(self, x, y, residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.tau is not None:
            nn.init.zeros_(self.tau)
        if self.learned_eps is not None:
            nn.init.constant_(self.learned_eps, LEARNED_EPS)


class GlobalResponseNorm(Norm, name="global_response", aliases=("grn",)):
    """Channels made to compete: each is scaled by its share of a sample's response, and added to x.

    y = x * share * weight + bias + x,   share = size / (mean_c(size) + eps)

    size is the root of the sum of x² over positions, one per sample and channel; its mean is over
    channels. weight and bias start at 0, so that a new layer is the identity: in its paper it
    stands beside a norm, not in the place of one.

    Args:
        num_channels: C, the size of axis 1.
        eps: added to the mean size, so in units of x; the paper's is 1e-6.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: Woo et al. 2023, https://arxiv.org/abs/2301.00808, section 3.2.

    >>> x = torch.randn(2, 3, 8)
    >>> torch.equal(GlobalResponseNorm(3)(x), x)
    True
    """

    pattern = InstanceNorm.pattern
    center = False
    can_recompute = False

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.reset_parameters()

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        wide = begun(self, x, residual, mask)
        _, square = ops.moments(wide, self.pattern, False)
        square = square * patterns.geometry(self.pattern, x.shape).count
        # a channel of zeros has a gradient of 0, where that of a root is infinite
        is_alive = square > 0
        size = torch.where(is_alive, torch.where(is_alive, square, 1).sqrt(), 0)
        share = size / (size.mean(1, keepdim=True) + self.eps)
        y = scaled(self, wide * per_sample(share, wide)) + wide
        return finished(self, x, y, residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.weight is not None:
            nn.init.zeros_(self.weight)


class EvoNormB0(Norm, name="evonorm_b0"):
    """Division by the batch's or the sample's deviation, whichever is larger: norm and activation.

    y = x / max(sqrt(var + eps), v * x + sqrt(instance_var + eps)) * weight + bias

    var is over "n c ... -> c", the running one in evaluation; instance_var over "n c ... -> n c".
    Both are biased; the running one is unbiased, as in batch norm. `v` is a parameter (C,),
    starting at 1. The running mean is kept as well, which y has no use for.

    Args:
        num_channels: C, the size of axis 1.
        options: see `Norm`; activation=None is the paper's, as the norm is one already.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: one value per channel in training.

    Source: Liu et al. 2020, https://arxiv.org/abs/2004.02967, table 2.

    >>> x, layer = torch.randn(2, 3, 4, 4), EvoNormB0(3).eval()
    >>> _ = layer.running_var.fill_(100.0**2)
    >>> torch.allclose(layer(x), x / 100)
    True
    """

    pattern = PER_CHANNEL
    can_recompute = False

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.v = for_channels(1.0, num_channels, options)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        wide = begun(self, x, residual, mask, v=self.v)
        batch = torch.sqrt(of_channels(self, wide)[1] + self.eps)
        instance = torch.sqrt(ops.moments(wide, InstanceNorm.pattern, True)[1] + self.eps)
        own = wide * per_channel(self.v, wide) + per_sample(instance, wide)
        y = wide / torch.maximum(own, per_channel(batch, wide))
        count_batch(self)
        return finished(self, x, scaled(self, y), residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.v)


class EvoNormS0(Grouped, Norm, name="evonorm_s0"):
    """A gated input over the deviation of its group of channels: norm and activation in one.

    y = x * sigmoid(v * x) / sqrt(var + eps) * weight + bias,   statistics "n (g c) ... -> n g"

    `v` is a parameter (C,), starting at 1.

    Args:
        num_channels: C, the size of axis 1.
        num_groups, group_size: as in `GroupNorm`; the paper has 32 groups.
        options: see `Norm`; activation=None is the paper's, as the norm is one already.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        PatternError: the channels do not split as asked.

    Source: Liu et al. 2020, https://arxiv.org/abs/2004.02967, table 2.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> z = torch.nn.functional.silu(x).view(2, 3, -1) / x.view(2, 3, -1).std(2, False, True)
    >>> torch.allclose(EvoNormS0(6, num_groups=3)(x), z.view_as(x), atol=1e-4)
    True
    """

    pattern = GroupNorm.pattern
    can_recompute = False

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.v = for_channels(1.0, num_channels, options)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        wide = begun(self, x, residual, mask, v=self.v)
        rstd = torch.rsqrt(ops.moments(wide, self.pattern, True)[1] + self.eps)
        geometry = patterns.geometry(self.pattern, x.shape)
        gated = (wide * _sigmoid(wide * per_channel(self.v, wide))).reshape(geometry.split)
        y = (gated * rstd.to(wide.dtype).reshape(geometry.broadcast)).reshape(x.shape)
        return finished(self, x, scaled(self, y), residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.v)


def _sigmoid(z: Tensor) -> Tensor:
    """With the same bits wherever a value lies in memory, which torch's lacks on the CPU."""
    if z.device.type != "cpu":
        return torch.sigmoid(z)
    # below -80 it is as good as 0, where exp, infinite in the end, has no gradient
    return torch.exp(-z.clamp(min=-80)).add(1).reciprocal()


def for_channels(value: float, num_channels: int, options: dict[str, Any]) -> nn.Parameter:
    """A learned number for each channel, where the layer's options say that parameters are."""
    place: Any = {"device": options.get("device"), "dtype": options.get("dtype")}
    return nn.Parameter(torch.full((num_channels,), value, **place))
