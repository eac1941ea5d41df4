"""Norms whose statistics are those of the batch, with running averages for evaluation."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from normlab.checks import check_tensors
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm, count_batch, next_momentum
from normlab.ops import ACTIVATIONS
from normlab.pattern import bind

SLICES = "(b n) c ... -> b c"  # batch norm over slices of the batch, "ghost batch norm"


class BatchNorm(Norm, name="batch", aliases=("bn",)):
    """One mean and variance per channel over the batch; running averages in evaluation.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> c"

    Args:
        num_channels: C, the size of axis 1.
        norm_batch_size: samples that share statistics in training, "(b n) c ... -> b c"; must
            divide the batch. None is the whole batch. Running statistics are those averaged over
            the slices.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: one value per channel in training.
        PatternError: norm_batch_size does not divide the batch.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; in slices, Hoffer et al. 2017,
    https://arxiv.org/abs/1705.08741.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> halves = torch.cat([BatchNorm(3)(x[:4]), BatchNorm(3)(x[4:])])
    >>> torch.allclose(BatchNorm(3, norm_batch_size=4)(x), halves, atol=1e-6)
    True
    """

    pattern = PER_CHANNEL
    spec_options = {"n": "norm_batch_size"}

    def __init__(
        self, num_channels: int, *, norm_batch_size: int | None = None, **options: Any
    ) -> None:
        super().__init__(num_channels, **options)
        self.pattern = sliced(self.pattern, norm_batch_size)


class TorchBatchNorm(Norm, name="torch_bn"):
    """Batch norm as torch computes it: the control for ours.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> c"

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: torch.nn.functional.batch_norm.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> torch.allclose(TorchBatchNorm(3)(x), BatchNorm(3)(x), atol=1e-5)
    True
    """

    pattern = PER_CHANNEL
    can_recompute = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        self.check_input(x)
        check_tensors(x, residual, self.activation)
        training = self.training or not self.track_running_stats
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training,
            float(next_momentum(self)), self.eps,
        )  # fmt: skip
        count_batch(self)
        return ACTIVATIONS[self.activation or "none"][0](y if residual is None else y + residual)


def sliced(pattern: str, norm_batch_size: int | None) -> str:
    """The pattern, over slices of so many samples; None is the whole batch."""
    return pattern if norm_batch_size is None else bind(SLICES, n=norm_batch_size)
