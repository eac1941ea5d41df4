"""The ways into the operators: by statistics of x, by given ones, by running ones.

Whatever normalizes comes through here, once it knows its pattern.
"""

from typing import Any

import torch
from torch import Tensor

from normlab import moments, ops
from normlab import pattern as patterns
from normlab.checks import check_count, check_movable, check_running, check_tensors
from normlab.ops import ACTIVATIONS
from normlab.pattern import Geometry
from normlab.recompute import check_recompute, rebuildable

PER_CHANNEL = "n c ... -> c"  # what running statistics are kept over, whatever the pattern


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
    recompute: bool = False,
    center: bool = True,
    mask: Tensor | None = None,
    process_group: Any = None,
) -> Tensor:
    """Normalize by the statistics of x and move the running ones, or by the running ones.

    Args:
        pattern: with its sizes written in; running statistics average over axes it keeps besides
            the channels, and are the same for all channels of a group.
        training: use the statistics of x.
        center: subtract the mean; without, running_var is the mean square.
        mask, process_group: as in `normlab.functional.normalize`. A statistic of fewer than two
            values moves no running one.
    """
    check_running(x, running_mean, running_var, training)
    finish = (weight, bias, eps, activation, residual, recompute)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        return applied(x, running_mean, running_var, PER_CHANNEL, *finish, mask=mask)
    check_movable(running_mean)
    if mask is None and process_group is None:
        if center:  # else one value is its own size, and not 0
            check_count(x.shape, pattern)
        y, statistics = normalized(x, pattern, *finish, center)
        if running_mean is not None and running_var is not None and x.numel():
            geometry = patterns.geometry(pattern, x.shape)
            unbiased = geometry.count / (geometry.count - int(center))
            seen = per_channel(statistics.detach(), geometry)
            ops.track(running_mean, running_var, seen, momentum, unbiased)
        return y
    y, mean, var, count = apart(x, pattern, *finish, center, mask, process_group)
    if running_mean is not None and running_var is not None:
        geometry = patterns.geometry(pattern, x.shape)
        track(running_mean, running_var, (mean, var, count), geometry, momentum, center)
    return y


def normalized(
    x: Tensor,
    pattern: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    recompute: bool,
    center: bool = True,
) -> tuple[Tensor, Tensor]:
    """y and its statistics; the one way into `ops.normalize`, for x of a rank that was checked."""
    check_tensors(x, residual, activation, weight=weight, bias=bias)
    check_recompute(recompute)
    how = activation or "none"
    y, statistics = ops.normalize(x, weight, bias, residual, pattern, eps, center, how)
    if recompute:
        y = rebuildable(y, ops.rebuild, x, weight, bias, residual, statistics, pattern, how)
    return y, statistics


def applied(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    pattern: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    recompute: bool,
    mask: Tensor | None = None,
) -> Tensor:
    """y under given statistics; the one way into `ops.apply`.

    Where a mask is False, y = activation(bias + residual), and no gradient but the residual's
    passes.
    """
    check_tensors(x, residual, activation, weight=weight, bias=bias)
    check_recompute(recompute)
    _check_recomputable(recompute, mask)
    if mask is not None:
        mask = moments.fitted(mask, x)
        left = x.masked_fill(~mask, 0)  # what is left out may be NaN
        return _masked(left, mask, mean, var, pattern, weight, bias, eps, activation, residual)
    given = (x, mean, var, weight, bias, residual, pattern, eps, activation or "none")
    y = ops.apply(*given)
    return rebuildable(y, ops.apply, *given) if recompute else y


def apart(
    x: Tensor,
    pattern: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    recompute: bool,
    center: bool,
    mask: Tensor | None,
    process_group: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y under statistics of what a mask leaves, or of several processes; mean, var and count."""
    check_tensors(x, residual, activation, weight=weight, bias=bias)
    if mask is None:
        mean, var, count = moments.counted(x, pattern, center, None, process_group)
        finish = (weight, bias, eps, activation, residual, recompute)
        return applied(x, mean, var, pattern, *finish), mean, var, count
    _check_recomputable(recompute, mask)
    mask = moments.fitted(mask, x)
    left = x.masked_fill(~mask, 0)
    mean, var, count = moments.counted(left, pattern, center, mask, process_group)
    y = _masked(left, mask, mean, var, pattern, weight, bias, eps, activation, residual)
    return y, mean, var, count


def track(
    running_mean: Tensor,
    running_var: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    geometry: Geometry,
    momentum: float | Tensor,
    center: bool = True,
) -> None:
    """Move running statistics by those that have values enough, in place.

    Args:
        found: mean, biased variance and count, shaped as what the pattern keeps.
    """
    mean, var, count = (t.detach() for t in found)
    free = count - int(center)  # degrees of freedom
    enough = free > 0
    kept = (torch.where(enough, t, 0) for t in (mean, var * count / free.clamp(min=1)))
    *seen, share = per_channel(torch.stack([*kept, enough.to(mean.dtype)]), geometry)
    new_mean, new_var = (t / torch.where(share > 0, share, 1) for t in seen)
    statistics = torch.stack([new_mean, new_var, new_var])
    ops.track(running_mean, running_var, statistics, momentum * (share > 0), 1.0)


def per_channel(statistics: Tensor, geometry: Geometry) -> Tensor:
    """(k, C) out of (k, the kept sizes): averaged over other axes, repeated within a group."""
    channels = geometry.channels
    if geometry.statistics == tuple(geometry.split[i] for i in channels):
        return statistics if len(channels) == 1 else statistics.flatten(1)
    sizes = [geometry.split[i] if i in channels else s for i, s in enumerate(geometry.broadcast)]
    others = [i + 1 for i in range(len(sizes)) if i not in channels]
    spread = statistics.reshape(-1, *geometry.broadcast)
    return spread.expand(-1, *sizes).mean(others).flatten(1)


def _masked(
    x: Tensor,
    mask: Tensor,
    mean: Tensor,
    var: Tensor,
    pattern: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    """y where a fitted mask is True, else activation(bias + residual); x is finite there."""
    how = activation or "none"
    y = ops.apply(x, mean, var, weight, bias, residual, pattern, eps, how)
    outside = torch.zeros_like(x)
    if bias is not None:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        outside = outside + bias.detach().to(x.dtype).reshape(shape)
    if residual is not None:
        outside = outside + residual
    return torch.where(mask, y, ACTIVATIONS[how][0](outside))


def _check_recomputable(recompute: bool, mask: Tensor | None) -> None:
    if recompute and mask is not None:
        raise ValueError("recompute=True is for whole tensors; leave it out where there is a mask")
