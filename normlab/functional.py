"""The functions of torch.nn.functional that normalize, with activation and residual built in.

Signatures are torch's, followed by keyword-only `activation` (a name, see `ACTIVATIONS`),
`residual`: y = activation(norm(x) * weight + bias + residual), and `recompute`: later layers keep
no y for their backward pass, but rebuild it then. `normalize` takes any pattern.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normlab import pattern as patterns
from normlab.checks import (
    check_count,
    check_dense,
    check_groups,
    check_joinable,
    check_rank,
)
from normlab.pattern import show
from normlab.running import PER_CHANNEL, apart, normalized, with_running

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
]


def normalize(
    x: Tensor,
    pattern: str,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
    recompute: bool = False,
    center: bool = True,
    mask: Tensor | None = None,
    process_group: Any = None,
    **sizes: int,
) -> Tensor:
    """Normalize over whatever a pattern drops.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)

    Args:
        x: (N, C, ...), any floating type.
        pattern: such as "n (g c) ... -> n g"; axes that disappear on the right are averaged.
        weight, bias: (C,), for the second axis of x; None is 1 and 0.
        eps: added to the variance, so in squared units of x.
        activation: none, relu, leaky_relu, silu, gelu, gelu_tanh, hardswish, sigmoid or tanh.
        residual: shape and type of x, added before the activation.
        recompute: what later layers save of y is rebuilt from x in the backward pass, bit for bit;
            see `normlab.recompute`.
        center: subtract the mean; False is root-mean-square normalization.
        mask: of booleans, True where a value of x counts; (N, ...) without the channel axis, or
            broadcasting to x. What it leaves out has no part in any statistic or gradient, and
            y = activation(bias + residual) there.
        process_group: of torch.distributed, whose batches have their statistics in common; the
            pattern must drop n. One collective forward, one backward.
        sizes: of axes named in the pattern, as g=8.

    Shape: (N, C, ...) -> (N, C, ...), same type and memory format. Elements are computed in
    float32, or float64 for float64 x; statistics in float64 on the CPU, on a GPU as elements are.
    Memory that is neither contiguous nor channels-last is copied once.

    Raises:
        PatternError: the pattern does not fit the shape.
        RuntimeError, TypeError: tensors of the wrong type, size or device.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> y = normalize(x, "n (g c) ... -> n g", g=3)
    >>> torch.allclose(y, torch.nn.functional.group_norm(x, 3), atol=1e-5)
    True
    """
    check_rank(x)
    text = patterns.bind(pattern, **sizes)
    given = (x, text, weight, bias, eps, activation, residual, recompute, center)
    if mask is None and process_group is None:
        return normalized(*given)[0]
    if process_group is not None:
        check_joinable(text)
    return apart(*given, mask, process_group)[0]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """One mean and variance per channel, over the batch, or the running ones.

    Statistics "n c ... -> c" of the batch where `training`, which also moves the running ones by
    `momentum` towards them (variance unbiased); else the running ones.

    Args:
        running_mean, running_var: (C,); both or neither. Updated in place in training.
        momentum: weight of the new batch.

    Shape: (N, C, ...) -> (N, C, ...).

    Raises:
        ValueError: one value per channel in training, or eps not positive in training.
        RuntimeError: statistics missing in evaluation, or tensors that do not fit.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.

    >>> x = torch.randn(4, 3, 5)
    >>> y = batch_norm(x, None, None, training=True)
    >>> torch.allclose(y.mean((0, 2)), torch.zeros(3), atol=1e-6)
    True
    """
    if training and eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, got {eps}")
    return with_running(
        input, PER_CHANNEL, running_mean, running_var, weight, bias,
        training=training, momentum=momentum, eps=eps, activation=activation, residual=residual,
        recompute=recompute,
    )  # fmt: skip


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """One mean and variance per sample and channel: statistics "n c ... -> n c".

    Running statistics, where given, are averages over samples too; they replace those of the input
    where `use_input_stats` is False.

    Shape: (N, C, ...) -> (N, C, ...).

    Raises:
        ValueError: one value per sample and channel.
        RuntimeError: statistics missing, or tensors that do not fit.

    Source: Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    >>> x = torch.randn(2, 3, 8)
    >>> torch.allclose(instance_norm(x), torch.nn.functional.instance_norm(x), atol=1e-5)
    True
    """
    return with_running(
        input, "n c ... -> n c", running_mean, running_var, weight, bias,
        training=use_input_stats, momentum=momentum, eps=eps, activation=activation,
        residual=residual, recompute=recompute,
    )  # fmt: skip


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """One mean and variance per sample and group of channels: statistics "n (g c) ... -> n g".

    Shape: (N, C, ...) -> (N, C, ...).

    Raises:
        PatternError: num_groups does not divide C.
        ValueError: one value in all per statistic.

    Source: Wu and He 2018, https://arxiv.org/abs/1803.08494, eq. 7.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> torch.allclose(group_norm(x, 6), instance_norm(x), atol=1e-6)
    True
    """
    check_rank(input)
    remembered = patterns.are_plain(input.shape)
    pattern = (_groups_once if remembered else _groups)(input.shape, num_groups)
    return normalized(input, pattern, weight, bias, eps, activation, residual, recompute)[0]


def _groups(shape: torch.Size, num_groups: int) -> str:
    """The pattern of group norm, where it fits a shape."""
    check_groups(num_groups, shape[1])
    if min(shape[1:]) == 0:
        raise RuntimeError(
            "Expected HxW and the number of channels to be greater than 0, "
            f"got input of shape {show(shape)}"
        )
    pattern = f"n (g={num_groups} c) ... -> n g"
    check_count(shape, pattern)
    return pattern


_groups_once = functools.lru_cache(maxsize=1024, typed=True)(_groups)  # True is not 1


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """One mean and variance over the last axes.

    Args:
        normalized_shape: sizes of the last axes, which weight and bias have too.

    Shape: (..., *normalized_shape) -> the same.

    Raises:
        RuntimeError: the input or weight does not end in normalized_shape.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450.

    >>> x = torch.randn(2, 5, 8)
    >>> torch.allclose(layer_norm(x, (8,)), torch.nn.functional.layer_norm(x, (8,)), atol=1e-5)
    True
    """
    return _last_axes(input, normalized_shape, weight, bias, eps, activation, residual, recompute)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Divide by the root mean square over the last axes.

    y = x / sqrt(mean(x²) + eps) * weight

    Args:
        normalized_shape: sizes of the last axes, which weight has too.
        eps: None is the machine epsilon of the input's type.

    Shape: (..., *normalized_shape) -> the same.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.

    >>> x = torch.randn(2, 8)
    >>> torch.allclose(rms_norm(x, (8,)), torch.nn.functional.rms_norm(x, (8,)), atol=1e-5)
    True
    """
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _last_axes(
        input, normalized_shape, weight, None, eps, activation, residual, recompute, False
    )


def _last_axes(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    recompute: bool,
    center: bool = True,
) -> Tensor:
    """The last axes flattened into channels: "n c -> n"."""
    check_dense(x)
    last = tuple(normalized_shape)
    if not last or tuple(x.shape[-len(last) :]) != last:
        raise RuntimeError(
            f"expected an input that ends in normalized_shape {show(last)}, got {show(x.shape)}"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and tuple(parameter.shape) != last:
            raise RuntimeError(
                f"expected {name} of shape {show(last)}, got {show(parameter.shape)}"
            )
    rows = (patterns.product(x.shape[: -len(last)]), patterns.product(last))
    y, _ = normalized(
        x.reshape(rows), "n c -> n",
        None if weight is None else weight.reshape(-1),
        None if bias is None else bias.reshape(-1),
        eps, activation, None if residual is None else residual.reshape(rows), recompute, center,
    )  # fmt: skip
    return y.reshape(x.shape)
