"""Every norm: its pattern, its equation, its paper. Writing a class here is all a new norm takes.

`norm("group:8", 64)` builds one by name; `available()` lists the names.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normlab import functional
from normlab.checks import (
    check_channels,
    check_count,
    check_groups,
    check_tensors,
    check_whole,
)
from normlab.functional import PER_CHANNEL
from normlab.layer import ALIASES, CATALOGUE, Norm, count_batch, next_momentum
from normlab.ops import ACTIVATIONS
from normlab.pattern import PatternError, bind

DEFAULT_GROUP_SIZE = 16  # channels; Wu and He 2018, table 3b
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
        self.pattern = _sliced(self.pattern, norm_batch_size)


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


class GroupNorm(Norm, name="group", aliases=("gn",)):
    """One mean and variance per sample and group of channels.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n (g c) ... -> n g"

    Args:
        num_channels: C, the size of axis 1.
        num_groups: groups the channels are split into, in order; must divide C.
        group_size: channels per group, in place of num_groups; must divide C. Without either, the
            divisor of C nearest to 16, the larger of two, and never 1 unless C is.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        PatternError: the channels do not split as asked.

    Source: Wu and He 2018, https://arxiv.org/abs/1803.08494, eq. 7.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> torch.allclose(GroupNorm(6, num_groups=6)(x), InstanceNorm(6)(x), atol=1e-6)
    True
    >>> GroupNorm(64).num_groups
    4
    """

    pattern = "n (g c) ... -> n g"
    spec_options = {"": "num_groups", "size": "group_size"}

    def __init__(
        self,
        num_channels: int,
        *,
        num_groups: int | None = None,
        group_size: int | None = None,
        **options: Any,
    ) -> None:
        check_channels(num_channels)
        if num_groups is None:
            num_groups = _num_groups(num_channels, group_size)
        elif group_size is not None:
            raise PatternError(
                f"give num_groups or group_size, not both; got {num_groups} and {group_size}"
            )
        check_groups(num_groups, num_channels)
        super().__init__(num_channels, g=num_groups, **options)
        self.num_groups = num_groups


class LayerNorm(Norm, name="layer", aliases=("ln",)):
    """One mean and variance per sample, over channels and positions.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> n"

    weight and bias are per channel, as in the group norm paper; `normlab.nn.LayerNorm` is torch's.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> torch.allclose(LayerNorm(6)(x), GroupNorm(6, num_groups=1)(x), atol=1e-6)
    True
    """

    pattern = "n c ... -> n"


class InstanceNorm(Norm, name="instance", aliases=("in",)):
    """One mean and variance per sample and channel, over positions.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> n c"

    Shape: (N, C, ...) -> (N, C, ...), with more than one position.

    Raises:
        ValueError: one position, so one value per statistic.

    Source: Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    >>> x = torch.randn(2, 3, 8)
    >>> torch.allclose(InstanceNorm(3)(x), torch.nn.InstanceNorm1d(3)(x), atol=1e-5)
    True
    """

    pattern = "n c ... -> n c"


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
        self.pattern = _sliced(self.pattern, norm_batch_size)
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


def available() -> list[str]:
    """The full names of all norms, in the order of this file.

    >>> "group" in available()
    True
    """
    return list(CATALOGUE)


def norm(spec: str, num_channels: int | None = None, **options: Any) -> Any:
    """The norm described by a spec.

    A spec is a name, then a colon and options: "group", "group:8" (groups), "group:size=16"
    (channels per group), "batch:n=2" (samples that share statistics). Short names of the literature
    (bn, gn, ln, in, bin, nn) work too.

    Args:
        num_channels: C; without it, a function of C is returned, for torchvision's norm_layer.
        options: further arguments of the layer.

    Raises:
        LookupError: no norm or no option is written like that.
        PatternError, ValueError, TypeError: options that do not fit.

    >>> norm("group:8", 64).num_groups
    8
    >>> norm("gn:size=16")(64).num_groups
    4
    """
    cls, parsed = parse(spec)
    build: Callable[..., Norm] = functools.partial(cls, **{**parsed, **options})
    return build if num_channels is None else build(num_channels)


def parse(spec: str) -> tuple[type[Norm], dict[str, int]]:
    """The class and the options a spec stands for.

    Raises:
        LookupError: no norm has that name, or no such option, or its value is no whole number.
    """
    name, _, rest = spec.partition(":")
    cls = CATALOGUE.get(ALIASES.get(name, name))
    if cls is None:
        short = ", ".join(f"{a} ({n})" for a, n in ALIASES.items())
        raise LookupError(f"norm {name!r}: there are {', '.join(CATALOGUE)}; in short {short}")
    options = {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.rpartition("=")
        option = cls.spec_options.get(key, key)
        if option not in cls.spec_options.values():
            forms = [f"{name}:{k}{'=' if k else ''}8" for k in cls.spec_options]
            raise LookupError(
                f"norm {spec!r}: cannot read {item!r}; write {' or '.join([name, *forms])}"
            )
        if not value.lstrip("-").isdigit():
            raise LookupError(f"norm {spec!r}: {option} must be a whole number, got {value!r}")
        options[option] = int(value)
    return cls, options


def _sliced(pattern: str, norm_batch_size: int | None) -> str:
    return pattern if norm_batch_size is None else bind(SLICES, n=norm_batch_size)


def _num_groups(num_channels: int, group_size: int | None) -> int:
    """Groups of the size asked for, or of the size nearest to 16 that divides the channels."""
    if group_size is None:
        divisors = [d for d in range(2, num_channels + 1) if num_channels % d == 0] or [1]
        group_size = min(divisors, key=lambda d: (abs(d - DEFAULT_GROUP_SIZE), -d))
    check_whole("group_size", group_size)
    if group_size < 1 or num_channels % group_size:
        divisors = [d for d in range(1, num_channels + 1) if num_channels % d == 0]
        raise PatternError(
            f"{num_channels} channels do not split into groups of {group_size} channels; "
            f"choose one of {', '.join(map(str, divisors))}"
        )
    return num_channels // group_size
