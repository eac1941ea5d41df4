"""The operators in plain torch: any device, any layout, differentiable any number of times.

This is what runs where no kernel does, and what kernels fall back to. Values are shifted by one of
their own before they are averaged, so that a constant group has variance 0 and a large offset costs
no digits. Elements are float32 (float64 for float64 input); sums, squares before they are summed,
mean and variance are float64 on the CPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from normlab import pattern as patterns
from normlab.pattern import Geometry

aten = torch.ops.aten

# name: (function, gradient from dy and the function's input z)
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "none": (lambda z: z, lambda dy, z: dy),
    "relu": (F.relu, lambda dy, z: aten.threshold_backward(dy, z, 0)),
    "leaky_relu": (F.leaky_relu, lambda dy, z: aten.leaky_relu_backward(dy, z, 0.01, False)),
    "silu": (F.silu, aten.silu_backward),
    "gelu": (F.gelu, lambda dy, z: aten.gelu_backward(dy, z)),
    "gelu_tanh": (
        lambda z: F.gelu(z, approximate="tanh"),
        lambda dy, z: aten.gelu_backward(dy, z, approximate="tanh"),
    ),
    "hardswish": (F.hardswish, aten.hardswish_backward),
    "sigmoid": (torch.sigmoid, lambda dy, z: aten.sigmoid_backward(dy, torch.sigmoid(z))),
    "tanh": (torch.tanh, lambda dy, z: aten.tanh_backward(dy, torch.tanh(z))),
}


def compute_dtype(x: Tensor) -> torch.dtype:
    """Type elements, dweight and dbias are computed in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Type of statistics: float64 on the CPU, where it is free, else that of elements.

    A mean of float64 is what keeps the digits of x - mean where the mean is large, and a variance
    of float64 does not leave its range where x is huge.
    """
    return torch.float64 if x.device.type == "cpu" else compute_dtype(x)


def moments(x: Tensor, pattern: str, center: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over what the pattern drops."""
    geometry = patterns.geometry(pattern, x.shape)
    _, mean, var = _centred(_split(x, geometry), geometry, center)
    kept = geometry.statistics
    return mean.reshape(kept).to(statistics_dtype(x)), var.reshape(kept).to(statistics_dtype(x))


def moments_backward(
    dmean: Tensor | None, dvar: Tensor | None, x: Tensor, mean: Tensor, pattern: str, center: bool
) -> Tensor:
    """dx = (dmean + 2 * dvar * (x - mean)) / count;   dmean only if centred"""
    geometry = patterns.geometry(pattern, x.shape)
    count = max(geometry.count, 1)
    dx = x.new_zeros(geometry.split, dtype=compute_dtype(x))
    if dvar is not None:
        dx = _normalized(x, mean, dvar * (2 / count), geometry)
    if dmean is not None and center:
        dx = dx + (dmean / count).to(dx.dtype).reshape(geometry.broadcast)
    return _like(x, dx)


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """y, and as one tensor mean, var and rstd = 1/sqrt(var + eps)."""
    mean, var = moments(x, pattern, center)
    statistics = torch.stack([mean, var, torch.rsqrt(var + eps)])
    return rebuild(x, weight, bias, residual, statistics, pattern, activation), statistics


def rebuild(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    pattern: str,
    activation: str,
) -> Tensor:
    """y of `normalize` once more, bit for bit, from the statistics it returned."""
    geometry = patterns.geometry(pattern, x.shape)
    mean, _, rstd = statistics
    z = _affine(_normalized(x, mean, rstd, geometry), weight, bias, residual, geometry)
    return _like(x, ACTIVATIONS[activation][0](z))


def apply(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    activation: str,
) -> Tensor:
    """y under statistics that are given."""
    statistics = given(x, mean, var, eps)
    return rebuild(x, weight, bias, residual, statistics, pattern, activation)


def given(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """Statistics for x out of a mean and a variance."""
    mean, var = mean.to(statistics_dtype(x)), var.to(statistics_dtype(x))
    return torch.stack([mean, var, torch.rsqrt(var + eps)])


def apply_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `apply` by x, weight, bias and residual; the statistics are constants."""
    geometry = patterns.geometry(pattern, x.shape)
    mean, _, rstd = given(x, mean, var, eps)
    xhat, dz = _past_activation(dy, x, weight, bias, residual, mean, rstd, geometry, activation)
    others = tuple(i for i in range(len(geometry.split)) if i not in geometry.channels)
    dweight, dbias = (_sum(t, others).flatten().to(dz.dtype) for t in (dz * xhat, dz))
    g = dz if weight is None else dz * weight.to(dz.dtype).reshape(geometry.per_channel)
    dx = _like(x, g * rstd.to(dz.dtype).reshape(geometry.broadcast))
    return dx, dweight, dbias, _dresidual(x, dz, residual, activation)


def track(
    running_mean: Tensor,
    running_var: Tensor,
    statistics: Tensor,
    momentum: float | Tensor,
    unbiased: float,
) -> None:
    """running ← (1 - momentum) · running + momentum · new, the variance times `unbiased`."""
    with torch.no_grad():
        for running, new in (
            (running_mean, statistics[0]),
            (running_var, statistics[1] * unbiased),
        ):
            running.mul_(1 - momentum).add_(new * momentum)


def normalize_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    pattern: str,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `normalize` by x, weight, bias and residual.

    dx = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = dz * weight;   mean(g) only if centred

    dz is the gradient past the activation, and the residual's; None stands for it where there is no
    residual, or no activation, so that it is dy itself.

    Large sums are taken once, over the axes that belong neither to a statistic nor to a channel;
    from these, those per statistic and those per channel are small sums.
    """
    geometry = patterns.geometry(pattern, x.shape)
    mean, _, rstd = statistics
    xhat, dz = _past_activation(dy, x, weight, bias, residual, mean, rstd, geometry, activation)
    rstd = rstd.to(dz.dtype).reshape(geometry.broadcast)

    channels = geometry.channels
    inner = tuple(i for i in geometry.reduced if i not in channels)
    others = tuple(i for i in range(len(geometry.split)) if i not in (*channels, *inner))
    sums = [_sum(t, inner) for t in (dz * xhat, dz)]
    dweight, dbias = (_sum(t, others).flatten().to(rstd.dtype) for t in sums)

    g = dz
    if weight is not None:
        w = weight.reshape(geometry.per_channel)
        g, sums = dz * w.to(dz.dtype), [t * w.to(t.dtype) for t in sums]
    across = tuple(i for i in geometry.reduced if i in channels)
    slope, mean_g = (_sum(t, across).div(geometry.count).to(g.dtype) for t in sums)
    # the mean first: where a group is one value, g - mean(g) is then exactly 0
    dx = (g - mean_g if center else g) - xhat * slope
    return _like(x, dx * rstd), dweight, dbias, _dresidual(x, dz, residual, activation)


def _past_activation(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    geometry: Geometry,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """xhat and dz, split."""
    xhat = _normalized(x, mean, rstd, geometry)
    dz = _split(dy, geometry)
    if activation != "none":
        dz = ACTIVATIONS[activation][1](dz, _affine(xhat, weight, bias, residual, geometry))
    return xhat, dz


def _dresidual(x: Tensor, dz: Tensor, residual: Tensor | None, activation: str) -> Tensor | None:
    return None if residual is None or activation == "none" else _like(x, dz)


def _normalized(x: Tensor, mean: Tensor, rstd: Tensor, geometry: Geometry) -> Tensor:
    """(x - mean) * rstd, split; a mean with more digits than x is subtracted in two parts."""
    x = _split(x, geometry)
    mean, rstd = (s.reshape(geometry.broadcast) for s in (mean, rstd))
    high = mean.to(x.dtype)
    centred = x - high
    if mean.dtype != x.dtype:
        centred = centred - (mean - high).to(x.dtype)
    return centred * rstd.to(x.dtype)


def _split(x: Tensor, geometry: Geometry) -> Tensor:
    """x with composed axes split, in the type elements are computed in."""
    return x.to(compute_dtype(x)).reshape(geometry.split)


def _sum(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The sum over axes, which stay with size 1; in float64 on the CPU."""
    wide = torch.float64 if x.device.type == "cpu" else x.dtype
    return x.sum(axes, keepdim=True, dtype=wide) if axes else x.to(wide)


def _centred(x: Tensor, geometry: Geometry, center: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x minus its mean, the mean and the biased variance, ready to broadcast."""
    count = max(geometry.count, 1)
    if not center:
        return x, x.new_zeros(geometry.broadcast), _sum_of_squares(x, geometry) / count
    if geometry.count == 0:
        nothing = x.new_zeros(geometry.broadcast)
        return x, nothing, nothing
    first = x.detach()
    for axis in geometry.reduced:
        first = first.narrow(axis, 0, 1)
    shifted = x - first
    offset = _sum(shifted, geometry.reduced) / count
    centred = shifted - offset.to(x.dtype)
    return centred, first + offset, _sum_of_squares(centred, geometry) / count


def _sum_of_squares(x: Tensor, geometry: Geometry) -> Tensor:
    wide = x.double() if x.device.type == "cpu" else x
    return _sum(wide.square(), geometry.reduced)


def _affine(
    xhat: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    z = xhat
    if weight is not None:
        z = z * weight.to(z.dtype).reshape(geometry.per_channel)
    if bias is not None:
        z = z + bias.to(z.dtype).reshape(geometry.per_channel)
    if residual is not None:
        z = z + residual.to(z.dtype).reshape(geometry.split)
    return z


def _like(x: Tensor, values: Tensor) -> Tensor:
    """The values in the shape, type and memory format of x, in memory of their own."""
    return torch.empty_like(x).copy_(values.reshape(x.shape))
