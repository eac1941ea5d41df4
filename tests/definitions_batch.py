"""Norms that use the batch and are more than one pattern, in float64."""

from collections.abc import Callable

import torch
from definitions import finished, one_pattern, running, used_pattern
from torch import Tensor

from normlab import reference
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm

INSTANCE, LAYER = "n c ... -> n c", "n c ... -> n"


def _batch_instance(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    batch = reference.normalize(x, used_pattern(layer), eps=layer.eps, statistics=running(layer))
    instance = reference.normalize(x, INSTANCE, eps=layer.eps)
    gate = layer.gate.double().reshape(-1, *[1] * (x.dim() - 2))
    return finished(layer, gate * batch + (1 - gate) * instance, residual)


def _batch_renorm(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    if not (layer.training and layer.track_running_stats):
        return one_pattern(layer, x, residual)
    mean, var = (s.detach() for s in reference.moments(x, PER_CHANNEL))
    std = (layer.running_var.double() + layer.eps).sqrt()
    seen = int(layer.num_batches_tracked)
    r_max = 1 + _grown(seen, layer.start, layer.r_end) * (layer.r_max - 1)
    d_max = _grown(seen, layer.start, layer.d_end) * layer.d_max
    r = ((var + layer.eps).sqrt() / std).clamp(1 / r_max, r_max)
    d = ((mean - layer.running_mean.double()) / std).clamp(-d_max, d_max)
    shape = (-1,) + (1,) * (x.dim() - 2)
    y = reference.normalize(x, PER_CHANNEL, eps=layer.eps) * r.reshape(shape) + d.reshape(shape)
    return finished(layer, y, residual)


def _grown(seen: int, start: int, end: int) -> float:
    """How far a limit is from its first to its last value."""
    if seen >= end or seen < start:
        return float(seen >= end)
    return (seen - start) / (end - start)


def _extended_batch(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    statistics = running(layer)
    if statistics is None:
        mean, _ = reference.moments(x, PER_CHANNEL)
        var = (x.double() - x.double().mean()).square().mean()
    else:
        mean, each = (s.double() for s in statistics)
        var = each.mean() + mean.var(correction=0)
    y = reference.normalize(x, PER_CHANNEL, eps=layer.eps, statistics=(mean, var.expand_as(mean)))
    return finished(layer, y, residual)


def _batch_channel(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    statistics = None
    if layer.track_running_stats:
        statistics = tuple(s.double() for s in (layer.running_mean, layer.running_var))
    if layer.track_running_stats and layer.training:
        mean, var = (s.detach() for s in reference.moments(x, PER_CHANNEL))
        seen = (mean, var + (mean - statistics[0]).square())
        new = 1 / (int(layer.num_batches_tracked) + 1) if layer.momentum is None else layer.momentum
        statistics = tuple((1 - new) * old + new * now for old, now in zip(statistics, seen))
    z = reference.normalize(
        x, PER_CHANNEL, layer.batch_weight, layer.batch_bias, eps=layer.eps, statistics=statistics
    )
    groups = f"n (g={layer.num_groups} c) ... -> n g"
    return finished(layer, reference.normalize(z, groups, eps=layer.eps), residual)


def _switchable(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    n, c = x.shape[:2]
    of_batch = running(layer) or reference.moments(x, PER_CHANNEL)
    mixed = []
    for at, logits in enumerate((layer.mean_weight, layer.var_weight)):
        of_instance = reference.moments(x, INSTANCE)[at]
        of_layer = reference.moments(x, LAYER)[at].reshape(n, 1)
        each = (of_instance, of_layer, of_batch[at].double().reshape(1, c))
        shares = torch.softmax(logits.double(), 0)
        mixed.append(sum(share * s for share, s in zip(shares, each)))
    y = reference.normalize(x, INSTANCE, eps=layer.eps, statistics=tuple(mixed))
    return finished(layer, y, residual)


DEFINITIONS: dict[str, Callable[[Norm, Tensor, Tensor | None], Tensor]] = {
    "batch_instance": _batch_instance,
    "batch_renorm": _batch_renorm,
    "extended_batch": _extended_batch,
    "batch_channel": _batch_channel,
    "switchable": _switchable,
}
