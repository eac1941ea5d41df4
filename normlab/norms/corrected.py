"""Norms of the batch whose statistics are not just the batch's, to be right where it is small."""

from typing import Any

import torch
from torch import Tensor

from normlab import functional, moments, ops, running
from normlab.checks import check_count, check_movable, check_tensors, check_whole, refuse_mask
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm, count_batch, next_momentum
from normlab.norms.elements import begun, of_channels
from normlab.norms.sample import Grouped, GroupNorm, number_of_groups
from normlab.pattern import bind


class BatchRenorm(Norm, name="batch_renorm", aliases=("brn",)):
    """Batch norm, corrected in training towards what the running statistics would give.

    y = ((x - mean) / sqrt(var + eps) * r + d) * weight + bias,   statistics "n c ... -> c"
    r = clip(sqrt(var + eps) / sqrt(running_var + eps), 1 / r_max, r_max)
    d = clip((mean - running_mean) / sqrt(running_var + eps), -d_max, d_max)

    r and d are constants in the backward pass, and are taken before the batch moves the running
    statistics. Where neither is clipped, training computes what evaluation does. r_max = 1 and
    d_max = 0 is batch norm, and so is a layer without running statistics, in training.

    The defaults are those of the group norm paper for batches of 4. The first paper's schedule is
    `BatchRenorm(C, r_max=3.0, d_max=5.0, start=5000, r_end=40000, d_end=25000)`. It counts batches
    by num_batches_tracked, so that a checkpoint goes on where it was. Unlike in the paper, what is
    averaged is the unbiased variance, not the standard deviation, so that batch norm's checkpoints
    load; its momentum is 0.01.

    Args:
        num_channels: C, the size of axis 1.
        r_max: limit of r, at least 1.
        d_max: limit of d, in standard deviations, at least 0.
        start: batches without any correction.
        r_end, d_end: batches after which the limits are r_max and d_max; in between they grow
            linearly from 1 and 0. None is `start`: at once.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: a limit or a number of batches is out of range, or one value per channel in
            training.

    Source: Ioffe 2017, https://arxiv.org/abs/1702.03275, algorithm 1; limits, Wu and He 2018,
    https://arxiv.org/abs/1803.08494, section 4.1.

    >>> x, layer = torch.randn(8, 3, 4, 4), BatchRenorm(3, r_max=9.0, d_max=9.0)
    >>> evaluated = layer.eval()(x)
    >>> torch.allclose(layer.train()(x), evaluated, atol=1e-5)
    True
    """

    pattern = PER_CHANNEL
    spec_options = {"start": "start", "r_end": "r_end", "d_end": "d_end"}

    def __init__(
        self,
        num_channels: int,
        *,
        r_max: float = 1.5,
        d_max: float = 0.5,
        start: int = 0,
        r_end: int | None = None,
        d_end: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_channels, **options)
        for name, value, least in (("r_max", r_max, 1), ("d_max", d_max, 0)):
            if not isinstance(value, int | float) or not least <= value < float("inf"):
                raise ValueError(f"{name} must be a number from {least}, got {value!r}")
        self.r_max, self.d_max = float(r_max), float(d_max)
        self.start = start
        self.r_end = start if r_end is None else r_end
        self.d_end = start if d_end is None else d_end
        for name, batches, first in (
            ("start", start, 0), ("r_end", self.r_end, start), ("d_end", self.d_end, start)
        ):  # fmt: skip
            check_whole(name, batches)
            if batches < first:
                raise ValueError(f"{name} must be at least {first} batches, got {batches}")

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        self.check_input(x)
        refuse_mask(self.name, mask)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        joined = moments.processes(self)
        # a process without samples takes part in what the others compute
        has_any = x.numel() > 0 or joined is not None
        if self.training and self.track_running_stats and has_any:
            weight, bias = self._corrected(x)
        y = functional.with_running(
            x, self.pattern, self.running_mean, self.running_var, weight, bias,
            training=self.training or not self.track_running_stats, momentum=next_momentum(self),
            eps=self.eps, activation=self.activation, residual=residual, recompute=self.recompute,
            process_group=joined,
        )  # fmt: skip
        count_batch(self)
        return y

    def limits(self) -> tuple[Any, Any]:
        """The limits of r and d for the batch to come; tensors where they depend on the count."""
        if self.num_batches_tracked is None or max(self.r_end, self.d_end) == 0:
            return self.r_max, self.d_max
        seen = self.num_batches_tracked
        of_r, of_d = (
            ((seen - self.start) / (end - self.start)).clamp(0, 1)
            if end > self.start
            else (seen >= end).to(torch.float32)
            for end in (self.r_end, self.d_end)
        )
        return 1 + of_r * (self.r_max - 1), of_d * self.d_max

    @torch.no_grad()
    def _correction(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """r and d, (C,)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        check_movable(self.running_mean)
        group = moments.processes(self)
        mean, var, _ = moments.counted(x.detach(), PER_CHANNEL, True, None, group)
        r_max, d_max = self.limits()
        rstd = torch.rsqrt(self.running_var.to(var.dtype) + self.eps)
        r = (var + self.eps).sqrt() * rstd
        d = (mean - self.running_mean.to(mean.dtype)) * rstd
        return r.clamp(1 / r_max, r_max), d.clamp(-d_max, d_max)

    def _corrected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias with r and d in them, in the type that elements are computed in."""
        check_tensors(x, None, None, weight=self.weight, bias=self.bias)
        r, d = self._correction(x)
        weight, bias = r, d
        if self.weight is not None:
            weight, bias = r * self.weight, d * self.weight
        if self.bias is not None:
            bias = bias + self.bias
        wide = ops.compute_dtype(x)
        return weight.to(wide), bias.to(wide)

    def extra_repr(self) -> str:
        shown = f"{super().extra_repr()}, r_max={self.r_max:g}, d_max={self.d_max:g}"
        ends = f", start={self.start}, r_end={self.r_end}, d_end={self.d_end}"
        return shown + (ends if max(self.r_end, self.d_end) else "")


class ExtendedBatchNorm(Norm, name="extended_batch", aliases=("ebn",)):
    """Batch norm's mean per channel, but one variance, that of all values of the batch.

    y = (x - mean_c) / sqrt(var + eps) * weight + bias
    var = mean over c of (var_c + (mean_c - mean)²),   mean_c, var_c "n c ... -> c"

    var is that of all values about their common mean. Running statistics are batch norm's, per
    channel; evaluation takes the common variance of them, which is that of the population where
    they are (`normlab.calibrate`). So checkpoints of batch norm load.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: one value per channel in training.

    Source: Luo et al. 2020, https://arxiv.org/abs/2003.05569.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> std = x.std(correction=0)
    >>> y = (x - x.mean((0, 2, 3), keepdim=True)) / std
    >>> torch.allclose(ExtendedBatchNorm(3)(x), y, atol=1e-4)
    True
    """

    pattern = PER_CHANNEL
    parts = {"mean": PER_CHANNEL, "variance": "n c ... ->"}
    can_recompute = False

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        x = begun(self, x, residual, mask, x.dtype)
        mean, var = of_channels(self, x)
        var = (var + (mean - mean.mean()).square()).mean().expand_as(mean)
        y = running.applied(
            x, mean, var, PER_CHANNEL, self.weight, self.bias, self.eps, self.activation, residual,
            recompute=False,
        )  # fmt: skip
        count_batch(self)
        return y


class BatchGroupNorm(Grouped, Norm, name="batch_group", aliases=("bgn",)):
    """One mean and variance per group of channels, over the batch; running averages in evaluation.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n (g c) ... -> g"

    With one channel per group it is batch norm. The paper cuts channels and positions, laid out in
    a row, into groups; here a group is of whole channels. Running statistics are kept per channel,
    the same for all channels of a group.

    Args:
        num_channels: C, the size of axis 1.
        num_groups: groups the channels are split into, in order; must divide C.
        group_size: channels per group, in place of num_groups. Without either, as in `GroupNorm`.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        PatternError: the channels do not split as asked.
        ValueError: one value per group in training.

    Source: Zhou et al. 2020, https://arxiv.org/abs/2012.02782.

    >>> x = torch.randn(8, 6, 4, 4)
    >>> torch.allclose(BatchGroupNorm(6, num_groups=6)(x), BatchNorm(6)(x), atol=1e-6)
    True
    """

    pattern = "n (g c) ... -> g"


class BatchChannelNorm(Norm, name="batch_channel", aliases=("bcn",)):
    """Batch norm by estimated statistics, then group norm; it needs no more than one sample.

    z = (x - running_mean) / sqrt(running_var + eps) * batch_weight + batch_bias
    y = (z - mean) / sqrt(var + eps) * weight + bias,   mean, var of z "n (g c) ... -> n g"

    In training too z is normalized by the running statistics, once the batch has moved them. They
    are constants in the backward pass. running_var is an average of squared distances from
    running_mean before it moved, not from the batch's mean, so that it is right at any batch size;
    it is not unbiased. Without running statistics z is batch norm, which the paper has for large
    batches. weight and bias are per channel; the paper's code has one of each per group.

    Args:
        num_channels: C, the size of axis 1.
        num_groups: groups the channels are split into, in order; must divide C.
        group_size: channels per group, in place of num_groups. Without either, as in `GroupNorm`.
        affine: learn weight, bias, batch_weight and batch_bias, each (C,).
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        PatternError: the channels do not split as asked.
        ValueError: one value in all per group.

    Source: Qiao et al. 2019, https://arxiv.org/abs/1911.09738, algorithm 1.

    >>> x, layer = torch.randn(1, 6, 4, 4), BatchChannelNorm(6, num_groups=2, momentum=0.0)
    >>> torch.allclose(layer(x), GroupNorm(6, num_groups=2)(x), atol=1e-4)
    True
    """

    pattern = PER_CHANNEL
    can_recompute = False
    spec_options = {"": "num_groups", "size": "group_size"}

    batch_weight: torch.nn.Parameter | None
    batch_bias: torch.nn.Parameter | None

    def __init__(
        self,
        num_channels: int,
        *,
        num_groups: int | None = None,
        group_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_channels, **options)
        self.num_groups = number_of_groups(num_channels, num_groups, group_size)
        for name, like in (("batch_weight", self.weight), ("batch_bias", self.bias)):
            copied = None if like is None else torch.nn.Parameter(like.detach().clone())
            self.register_parameter(name, copied)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        self.check_input(x)
        refuse_mask(self.name, mask)
        check_tensors(x, residual, self.activation, weight=self.weight, bias=self.bias)
        check_tensors(x, None, None, batch_weight=self.batch_weight, batch_bias=self.batch_bias)
        groups = bind(GroupNorm.pattern, g=self.num_groups)
        check_count(x.shape, groups)
        # z is no output, and so is not rounded to the type of x
        wide = ops.compute_dtype(x)
        mean, var = self._estimates(x) if self.track_running_stats else (None, None)
        z = functional.with_running(
            x.to(wide), PER_CHANNEL, mean, var, _cast(self.batch_weight, wide),
            _cast(self.batch_bias, wide), training=not self.track_running_stats, eps=self.eps,
            process_group=moments.processes(self),
        )  # fmt: skip
        y = functional.normalize(
            z, groups, _cast(self.weight, wide), _cast(self.bias, wide), eps=self.eps,
            activation=self.activation, residual=_cast(residual, wide),
        )  # fmt: skip
        count_batch(self)
        return y.to(x.dtype)

    @torch.no_grad()
    def _estimates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Running mean and variance, moved by the batch in training."""
        assert self.running_mean is not None
        assert self.running_var is not None
        group = moments.processes(self)
        if not self.training or (group is None and not x.numel()):
            return self.running_mean, self.running_var
        check_movable(self.running_mean)
        mean, var, _ = moments.counted(x.detach(), PER_CHANNEL, True, None, group)
        spread = var + (mean - self.running_mean.to(mean.dtype)).square()
        seen = torch.stack([mean, spread, spread])
        ops.track(self.running_mean, self.running_var, seen, next_momentum(self), 1.0)
        # the next batch moves them before this one's backward pass, perhaps
        return self.running_mean.clone(), self.running_var.clone()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.batch_weight is not None:
            torch.nn.init.ones_(self.batch_weight)
        if self.batch_bias is not None:
            torch.nn.init.zeros_(self.batch_bias)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)
