"""The definition of a norm, executed literally in float64: the truth every test compares with.

Nothing here is fast and nothing is shared with `ops`, except the reading of patterns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from normlab import pattern as patterns

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": lambda z: torch.where(z > 0, z, 0 * z),
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / 2**0.5)),
    "gelu_tanh": lambda z: (
        0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
    ),
    "hardswish": lambda z: z * torch.clamp(z + 3, 0, 6) / 6,
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "tanh": torch.tanh,
}


def moments(x: Tensor, pattern: str, *, center: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over what the pattern drops, in float64.

    m = mean(x),   v = mean((x - m)²);   without centring m = 0

    Shape: (N, C, ...) -> two tensors of the kept sizes.
    """
    geometry = patterns.geometry(pattern, x.shape)
    x = x.double().reshape(geometry.split)
    m = x.mean(geometry.reduced, keepdim=True) if geometry.reduced else x
    m = m if center else torch.zeros_like(m)
    c = x - m
    v = (c * c).mean(geometry.reduced, keepdim=True) if geometry.reduced else c * c
    return m.reshape(geometry.statistics), v.reshape(geometry.statistics)


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
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """y = activation((x - m) / sqrt(v + eps) * weight + bias + residual), in float64.

    Args:
        pattern: with every size written in, see `pattern.bind`.
        weight, bias: (C,), by index on the second axis of x.
        statistics: mean and variance to use in place of those of x.

    Shape: (N, C, ...) -> (N, C, ...), float64, differentiable.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> normalize(x, "n c ... -> c", eps=0.0).flatten().tolist()
    [-1.0, 1.0]
    """
    m, v = statistics or moments(x, pattern, center=center)
    geometry = patterns.geometry(pattern, x.shape)
    m, v = (s.double().reshape(geometry.broadcast) for s in (m, v))
    y = ((x.double().reshape(geometry.split) - m) / torch.sqrt(v + eps)).reshape(x.shape)
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    if weight is not None:
        y = y * weight.double().reshape(per_channel)
    if bias is not None:
        y = y + bias.double().reshape(per_channel)
    if residual is not None:
        y = y + residual.double()
    return ACTIVATIONS[activation or "none"](y)
