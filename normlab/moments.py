"""Mean and variance that are not of one whole tensor: of what a mask leaves, of all processes.

Both give mean, variance and the number of values they are of, shaped as what the pattern keeps;
`ops.apply` then normalizes by them. Gradients flow through the statistics, as they do elsewhere.
"""

from typing import Any

import torch
from torch import Tensor, distributed

from normlab import ops
from normlab import pattern as patterns
from normlab.pattern import Geometry, show


def counted(
    x: Tensor, pattern: str, center: bool, mask: Tensor | None, process_group: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and count over what the pattern drops.

    Args:
        mask: broadcasts to x, see `fitted`; where it is False, x counts for nothing.
        process_group: whose batches are joined; None is this process alone.
    """
    geometry = patterns.geometry(pattern, x.shape)
    if mask is None:
        mean, var = ops.moments(x, pattern, center)
        count = torch.full_like(mean, geometry.count)
    else:
        mean, var, count = _masked(x, geometry, center, mask)
    if process_group is None:
        return mean, var, count
    return Joined.apply(mean, var, count, process_group)


def fitted(mask: Tensor, x: Tensor) -> Tensor:
    """The mask with a channel axis.

    Args:
        mask: True where a value counts; (N, ...) without the channel axis, or as many axes as x,
            each of which may be 1.

    Raises:
        TypeError: it is not of booleans.
        ValueError: it does not fit x.
    """
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be of booleans, True where a value counts, got {mask.dtype}; "
            "write mask.bool(), or ~padding"
        )
    wide = mask.unsqueeze(1) if mask.dim() == x.dim() - 1 else mask
    fits = wide.dim() == x.dim() and all(m in (1, s) for m, s in zip(wide.shape, x.shape))
    if not fits:
        raise ValueError(
            f"expected a mask for input {show(x.shape)}, such as "
            f"{show((x.shape[0], *x.shape[2:]))}, got {show(mask.shape)}"
        )
    return wide


def processes(layer: Any) -> Any:
    """The processes that share a layer's statistics in training; None if each keeps to its own."""
    if not (layer.synchronize and layer.training):
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = layer.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


def _masked(
    x: Tensor, geometry: Geometry, center: bool, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    wide, axes = ops.statistics_dtype(x), geometry.reduced
    valid = mask.expand(x.shape).reshape(geometry.split)
    values = x.to(wide).reshape(geometry.split)
    count = valid.to(wide).sum(axes, keepdim=True) if axes else valid.to(wide)
    divisor = count.clamp(min=1)

    def mean_of(t: Tensor) -> Tensor:
        t = torch.where(valid, t, 0)
        return (t.sum(axes, keepdim=True) if axes else t) / divisor

    # shifted by a value of its own, so that constant values have exactly their mean
    first = values.new_zeros(geometry.broadcast)
    if center and axes and x.numel():
        first = torch.where(valid, values, -torch.inf).detach().amax(axes, keepdim=True)
        first = torch.where(count > 0, first, 0)
    mean = first + mean_of(values - first) if center else first
    var = mean_of((values - mean).square())
    kept = geometry.statistics
    return mean.reshape(kept), var.reshape(kept), count.reshape(kept)


class Joined(torch.autograd.Function):
    """Statistics of several processes' values, out of those of each.

    mean = Σ n_i mean_i / n,   var = Σ n_i (var_i + (mean_i - mean)²) / n,   n = Σ n_i

    One collective forward, one backward. The gradient is that of the sum of all processes' losses;
    a process without values takes part.
    """

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, var: Tensor, count: Tensor, group: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.stack([mean, var, count])
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, own, group)
        means, variances, counts = torch.stack(parts, 1)  # (processes, *kept)
        total = counts.sum(0)
        shares = counts / total.clamp(min=1)
        # relative to one of them, for the digits of means that are close to each other
        first = means.gather(0, counts.argmax(0, keepdim=True))
        joined = first[0] + (shares * (means - first)).sum(0)
        spread = (shares * (variances + (means - joined).square())).sum(0)
        ctx.group, ctx.share = group, count / total.clamp(min=1)
        ctx.save_for_backward(mean - joined)
        ctx.mark_non_differentiable(total)
        return joined, spread, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dmean: Tensor, dvar: Tensor, _: Tensor) -> Any:
        gradients = torch.stack([dmean, dvar])
        distributed.all_reduce(gradients, group=ctx.group)
        (offset,) = ctx.saved_tensors
        dmean, dvar = gradients * ctx.share
        return dmean + 2 * offset * dvar, dvar, None, None
