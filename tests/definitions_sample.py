"""Norms of single samples that are more than one pattern, or none, in float64."""

from collections.abc import Callable

import torch
from definitions import finished, running
from torch import Tensor

from normlab import reference
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm


def _none(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    return finished(layer, x.double(), residual)


def _dyt(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    return finished(layer, torch.tanh(layer.alpha.double() * x.double()), residual)


def _derf(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    y = torch.erf(layer.alpha.double() * x.double() + layer.shift.double())
    return finished(layer, y, residual)


def _local_response(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    x, before = x.double(), layer.size // 2
    channels = []
    for c in range(x.shape[1]):
        window = x[:, max(c - before, 0) : c - before + layer.size]
        mean = (window * window).sum(1) / layer.size
        channels.append(x[:, c] / (layer.k + layer.alpha * mean) ** layer.beta)
    return finished(layer, torch.stack(channels, 1), residual)


def _filter_response(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    mean = _mean_square(x)
    eps = layer.eps if layer.learned_eps is None else layer.eps + layer.learned_eps.double().abs()
    y = _affine(layer, x.double() / torch.sqrt(mean + eps))
    if layer.tau is not None:
        y = torch.maximum(y, _channels(layer.tau, x))
    return finished(layer, y, residual, affine=False)


def _global_response(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    positions = tuple(range(2, x.dim()))
    size = torch.linalg.vector_norm(x.double(), dim=positions, keepdim=True) if positions else None
    size = x.double().abs() if size is None else size
    share = size / (size.mean(1, keepdim=True) + layer.eps)
    return finished(layer, _affine(layer, x.double() * share) + x.double(), residual, affine=False)


def _evonorm_b0(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    _, batch = running(layer) or reference.moments(x, PER_CHANNEL)
    _, instance = reference.moments(x, "n c ... -> n c")
    instance = instance.reshape(*instance.shape, *[1] * (x.dim() - 2))
    left = torch.sqrt(_channels(batch, x) + layer.eps)
    right = _channels(layer.v, x) * x.double() + torch.sqrt(instance + layer.eps)
    return finished(layer, x.double() / torch.maximum(left, right), residual)


def _evonorm_s0(layer: Norm, x: Tensor, residual: Tensor | None) -> Tensor:
    n, c = x.shape[:2]
    _, var = reference.moments(x, layer.pattern)
    var = var.repeat_interleave(c // layer.num_groups, 1).reshape(n, c, *[1] * (x.dim() - 2))
    gated = x.double() / (1 + torch.exp(-_channels(layer.v, x) * x.double()))
    return finished(layer, gated / torch.sqrt(var + layer.eps), residual)


def _channels(values: Tensor, x: Tensor) -> Tensor:
    return values.double().reshape(-1, *[1] * (x.dim() - 2))


def _mean_square(x: Tensor) -> Tensor:
    positions = tuple(range(2, x.dim()))
    square = x.double() * x.double()
    return square.mean(positions, keepdim=True) if positions else square


def _affine(layer: Norm, y: Tensor) -> Tensor:
    y = y if layer.weight is None else y * _channels(layer.weight, y)
    return y if layer.bias is None else y + _channels(layer.bias, y)


DEFINITIONS: dict[str, Callable[[Norm, Tensor, Tensor | None], Tensor]] = {
    "none": _none,
    "dyt": _dyt,
    "derf": _derf,
    "local_response": _local_response,
    "filter_response": _filter_response,
    "global_response": _global_response,
    "evonorm_b0": _evonorm_b0,
    "evonorm_s0": _evonorm_s0,
}
