"""Moments of groups of channels out of those of channels, and the weights that make up for them."""

from typing import NamedTuple

import torch
from torch import Tensor

from normlab import pattern as patterns


class Match(NamedTuple):
    """What a pattern makes of the population statistics of channels; everything float64.

    Args:
        mean, var: of the values that share a statistic, one for each of the pattern's channel axes.
        scale, shift: (C,); weight * scale and bias + weight * shift compute under `mean` and `var`
            what weight and bias compute under the channels' own.
    """

    mean: Tensor
    var: Tensor
    scale: Tensor
    shift: Tensor

    def apply(
        self, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias, as they were where nothing changes, else float64."""
        if not self.changes:
            return weight, bias
        w, b = self._wide(weight, bias)
        return w * self.scale, b + w * self.shift

    def undo(
        self, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The inverse of `apply`."""
        if not self.changes:
            return weight, bias
        w, b = self._wide(weight, bias)
        w = w / self.scale
        return w, b - w * self.shift

    def _wide(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias in float64, 1 and 0 where there is none."""
        w = torch.ones_like(self.scale) if weight is None else weight.detach().to(self.scale)
        b = torch.zeros_like(self.shift) if bias is None else bias.detach().to(self.shift)
        return w, b

    @property
    def changes(self) -> bool:
        """Whether weight or bias have to be others."""
        if self.scale.is_meta:
            return True
        return bool((self.scale != 1).any() or (self.shift != 0).any())


def match(
    pattern: str, mean: Tensor, var: Tensor, *, eps: float, new_eps: float, center: bool = True
) -> Match:
    """Population moments under a pattern, and what weight and bias are multiplied and moved by.

    M = mean_c(mean),   S² = mean_c(var + (mean - M)²),   over channels that share a statistic,
    scale = sqrt(S² + new_eps) / sqrt(var + eps),   shift = (M - mean) / sqrt(var + eps)

    so that (x - M) / sqrt(S² + new_eps) * (weight * scale) + (bias + weight * shift) is
    (x - mean) / sqrt(var + eps) * weight + bias.

    Args:
        pattern: such as "n (g=4 c) ... -> n g", sizes written in.
        mean, var: (C,), of channels.
        center: without, M = 0 and S² is the mean square, of a norm that does not centre.
        eps: the eps `mean` and `var` are used with; `new_eps` is that of M and S².

    >>> mean, var = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0])
    >>> found = match("n c ... -> n", mean, var, eps=1e-5, new_eps=1e-5)
    >>> found.mean.item(), found.var.item()
    (2.0, 5.0)
    """
    device = "cpu" if mean.device.type == "mps" else mean.device  # it has no float64
    mean, var = (t.detach().to(device).double() for t in (mean, var))
    sizes, shared = channel_axes(pattern, len(mean))
    by_axis, var_by_axis = mean.reshape(sizes), var.reshape(sizes)
    if not center:
        square = var_by_axis + by_axis.square()
        group_var = square.mean(shared, keepdim=True) if shared else square
        group_mean = torch.zeros_like(group_var)
    elif shared:
        group_mean = by_axis.mean(shared, keepdim=True)
        group_var = (var_by_axis + (by_axis - group_mean).square()).mean(shared, keepdim=True)
    else:
        group_mean, group_var = by_axis, var_by_axis
    std = (var + eps).sqrt()
    spread_mean, spread_var = (t.expand(sizes).reshape(-1) for t in (group_mean, group_var))
    kept = [size for axis, size in enumerate(sizes) if axis not in shared]
    return Match(
        group_mean.reshape(kept),
        group_var.reshape(kept),
        (spread_var + new_eps).sqrt() / std,
        (spread_mean - mean) / std,
    )


def channel_axes(pattern: str, num_channels: int) -> tuple[list[int], list[int]]:
    """Sizes the channels are split into, and which of these axes share a statistic.

    >>> channel_axes("n (g=4 c) ... -> n g", 64)
    ([4, 16], [1])
    """
    parsed = patterns.parse(pattern)
    samples = patterns.product([parsed.sizes.get(name, 1) for name in parsed.axes[0]])
    geometry = patterns.geometry(pattern, (samples, num_channels))
    sizes = [geometry.split[axis] for axis in geometry.channels]
    return sizes, [i for i, axis in enumerate(geometry.channels) if axis in geometry.reduced]
