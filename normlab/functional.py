"""The functions of torch.nn.functional that normalize, with activation and residual built in.

Signatures are torch's, followed by keyword-only `activation` (a name, see `ACTIVATIONS`) and
`residual`: y = activation(norm(x) * weight + bias + residual). `normalize` takes any pattern.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from normlab import ops
from normlab import pattern as patterns
from normlab.pattern import PatternError, show

__all__ = [
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "normalize",
    "rms_norm",
]

PER_CHANNEL = "n c ... -> c"  # what running statistics are kept over, whatever the pattern


def normalize(
    x: Tensor,
    pattern: str,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
    center: bool = True,
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
        center: subtract the mean; False is root-mean-square normalization.
        sizes: of axes named in the pattern, as g=8.

    Shape: (N, C, ...) -> (N, C, ...), same type and memory format; statistics in float32, or
    float64 for float64 x.

    Raises:
        PatternError: the pattern does not fit the shape.
        RuntimeError, TypeError: tensors of the wrong type, size or device.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> y = normalize(x, "n (g c) ... -> n g", g=3)
    >>> torch.allclose(y, torch.nn.functional.group_norm(x, 3), atol=1e-5)
    True
    """
    text = patterns.bind(pattern, **sizes)
    return _normalize(x, text, weight, bias, eps, activation, residual, center)[0]


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
        residual=residual,
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
    check_groups(num_groups, input.shape[1])
    if min(input.shape[1:]) == 0:
        raise RuntimeError(
            "Expected HxW and the number of channels to be greater than 0, "
            f"got input of shape {show(input.shape)}"
        )
    pattern = f"n (g={num_groups} c) ... -> n g"
    check_count(input, pattern)
    return _normalize(input, pattern, weight, bias, eps, activation, residual)[0]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
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
    return _last_axes(input, normalized_shape, weight, bias, eps, activation, residual, True)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
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
    return _last_axes(input, normalized_shape, weight, None, eps, activation, residual, False)


def with_running(
    x: Tensor,
    pattern: str,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalize by the statistics of x and move the running ones, or by the running ones.

    Args:
        pattern: with its sizes written in; may keep axes besides c, over which running statistics
            then average.
        training: use the statistics of x.
    """
    _check_running(x, running_mean, running_var, training)
    if not training:
        return _apply(x, running_mean, running_var, weight, bias, eps, activation, residual)
    check_count(x, pattern)
    y, mean, var = _normalize(x, pattern, weight, bias, eps, activation, residual)
    if running_mean is not None and x.numel():
        count = patterns.geometry(pattern, x.shape).count
        channels = running_mean.numel()
        with torch.no_grad():
            unbiased = var.detach().reshape(-1, channels).mean(0) * (count / (count - 1))
            _move(running_mean, mean.detach().reshape(-1, channels).mean(0), momentum)
            _move(running_var, unbiased, momentum)
    return y


def check_groups(num_groups: int, num_channels: int) -> None:
    """Raise unless the channels split into that many groups."""
    if not isinstance(num_groups, int) or isinstance(num_groups, bool):
        kind = type(num_groups).__name__
        raise TypeError(f"num_groups must be a whole number, got {num_groups!r} ({kind})")
    if num_groups < 1:
        raise PatternError(f"num_groups must be ≥ 1, got {num_groups}")
    if num_channels % num_groups:
        divisors = [d for d in range(1, num_channels + 1) if num_channels % d == 0]
        raise PatternError(
            f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups}); "
            f"divisors of {num_channels}: {', '.join(map(str, divisors))}"
        )


def check_count(x: Tensor, pattern: str) -> None:
    """Raise where a variance would be taken of one value.

    Groups of one value are let through if there are several samples, as torch does.
    """
    if patterns.geometry(pattern, x.shape).count != 1:
        return
    kept = patterns.parse(pattern).kept
    norm, per, instead = (
        ("batch", "channel", "a larger batch or group norm")
        if "n" not in kept
        else ("instance", "sample and channel", "a larger input or group norm")
        if kept == ("n", "c")
        else ("group", "group", "a larger input or fewer groups")
    )
    if norm == "group" and x.shape[0] > 1:
        return
    raise ValueError(
        f"Expected more than 1 value per channel when training, got input size {list(x.shape)}: "
        f"{norm} norm got one value per {per} (shape {show(x.shape)}); its variance would be 0. "
        f"Use {instead}."
    )


def check_rank(x: Tensor) -> None:
    """Raise unless x has a sample and a channel axis."""
    if x.dim() < 2:
        raise ValueError(
            f"expected input with at least 2 axes (N, C, ...), got {x.dim()}D input of shape "
            f"{show(x.shape)}; add the missing axis with x.unsqueeze(0)"
        )


def _normalize(
    x: Tensor,
    pattern: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    center: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and var; the one way into `ops.normalize`."""
    check_rank(x)
    _check(x, weight, bias, residual, activation)
    y, mean, var, _ = ops.normalize(
        x, weight, bias, residual, pattern, eps, center, activation or "none"
    )
    return y, mean, var


def _apply(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """y under per-channel statistics; the one way into `ops.apply`."""
    check_rank(x)
    _check(x, weight, bias, residual, activation)
    return ops.apply(x, mean, var, weight, bias, residual, PER_CHANNEL, eps, activation or "none")


def _last_axes(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    center: bool,
) -> Tensor:
    """The last axes flattened into channels: "n c -> n"."""
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
    rows = (math.prod(x.shape[: -len(last)]), math.prod(last))
    y, _, _ = _normalize(
        x.reshape(rows), "n c -> n",
        None if weight is None else weight.reshape(-1),
        None if bias is None else bias.reshape(-1),
        eps, activation, None if residual is None else residual.reshape(rows), center,
    )  # fmt: skip
    return y.reshape(x.shape)


def _move(running: Tensor, new: Tensor, momentum: float | Tensor) -> None:
    """running ← (1 - momentum) · running + momentum · new, in place."""
    running.copy_(running + (new.to(running.dtype) - running) * momentum)


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> None:
    if x.layout != torch.strided or x.is_nested or x.is_quantized:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else x.layout
        raise TypeError(f"expected a dense tensor, got {kind}; convert it first (x.to_dense())")
    if not x.is_floating_point():
        raise NotImplementedError(
            f'"normalize" is not implemented for {x.dtype}; convert first, as in x.float()'
        )
    if activation is not None and activation not in ops.ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is none of {', '.join(ops.ACTIVATIONS)}")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _check_parameter(x, name, parameter)
    if residual is None:
        return
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise RuntimeError(
            f"expected residual like x, {show(x.shape)} {x.dtype} on {x.device}, "
            f"got {show(residual.shape)} {residual.dtype} on {residual.device}"
        )


def _check_parameter(x: Tensor, name: str, parameter: Tensor) -> None:
    if parameter.shape != x.shape[1:2]:
        raise RuntimeError(
            f"expected {name} with one value for each of the {x.shape[1]} channels of input "
            f"{show(x.shape)}, got shape {show(parameter.shape)}"
        )
    if parameter.device != x.device:
        raise RuntimeError(
            f"expected {name} on the device of the input, {x.device}, got {parameter.device}; "
            f"move the layer with .to({str(x.device)!r})"
        )
    if parameter.dtype not in (x.dtype, ops.statistics_dtype(x)):
        raise RuntimeError(
            f"mixed dtype: input {x.dtype} with {name} {parameter.dtype}; "
            f"expected {x.dtype} or {ops.statistics_dtype(x)}"
        )


def _check_running(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, training: bool
) -> None:
    check_rank(x)
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"expected running_mean and running_var or neither; {missing} is None")
    if running_mean is None:
        if training:
            return
        raise RuntimeError(
            "Expected running_mean and running_var to be defined when training=False; "
            "there are no statistics to evaluate with"
        )
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        if statistic.shape != x.shape[1:2]:
            raise RuntimeError(
                f"{name} should contain {x.shape[1]} elements, one per channel of input "
                f"{show(x.shape)}, not {statistic.numel()}"
            )
