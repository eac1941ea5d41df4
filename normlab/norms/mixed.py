"""Norms that are made of several patterns."""

from typing import Any

import torch
from torch import Tensor, nn

from normlab import functional
from normlab.checks import check_count, check_tensors
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm, count_batch, next_momentum
from normlab.norms.batch import sliced
from normlab.norms.sample import InstanceNorm
from normlab.ops import ACTIVATIONS


class BatchInstanceNorm(Norm, name="batch_instance", aliases=("bin",)):
    """A learned mixture of batch norm and instance norm in each channel.

    y = (gate * batch(x) + (1 - gate) * instance(x)) * weight + bias,   0 <= gate <= 1

    `gate` is a parameter (C,), starting at 1. It is clipped where it is used; its gradient is not,
    so that a gate driven past an end can come back.

    Args:
        num_channels: C, the size of axis 1.
        norm_batch_size: as in `BatchNorm`.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), with more than one position.

    Raises:
        ValueError: one position, so one value per statistic.

    Source: Nam and Kim 2018, https://arxiv.org/abs/1805.07925, eq. 3.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> torch.allclose(BatchInstanceNorm(3)(x), BatchNorm(3)(x), atol=1e-6)
    True
    """

    pattern = PER_CHANNEL
    can_recompute = False
    spec_options = {"n": "norm_batch_size"}

    def __init__(
        self, num_channels: int, *, norm_batch_size: int | None = None, **options: Any
    ) -> None:
        super().__init__(num_channels, **options)
        self.pattern = sliced(self.pattern, norm_batch_size)
        place: Any = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.gate = nn.Parameter(torch.ones(num_channels, **place))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self.check_input(x)
        check_tensors(
            x, residual, self.activation, gate=self.gate, weight=self.weight, bias=self.bias
        )
        check_count(x.shape, InstanceNorm.pattern)
        batch = functional.with_running(
            x, self.pattern, self.running_mean, self.running_var, eps=self.eps,
            training=self.training or not self.track_running_stats, momentum=next_momentum(self),
        )  # fmt: skip
        count_batch(self)
        instance = functional.normalize(x, InstanceNorm.pattern, eps=self.eps)
        per_channel = (-1,) + (1,) * (x.dim() - 2)
        gate = self.gate + (self.gate.clamp(0, 1) - self.gate).detach()
        y = torch.lerp(instance, batch, gate.to(x.dtype).reshape(per_channel))
        if self.weight is not None:
            y = y * self.weight.to(y.dtype).reshape(per_channel)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).reshape(per_channel)
        return ACTIVATIONS[self.activation or "none"][0](y if residual is None else y + residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.gate)
