"""A norm between its own statistics and the population's: from frozen batch norm to group norm."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normlab import functional, ops
from normlab import pattern as patterns
from normlab.checks import (
    check_activation,
    check_channels,
    check_count,
    check_eps,
    check_rank,
    check_tensors,
)
from normlab.pattern import show
from normlab.surgery.layers import SurgeryError
from normlab.surgery.moments import channel_axes


class Shrunk(nn.Module):
    """A norm whose statistics are shrunk towards those of the population.

    y = activation((x - m) / sqrt(v + eps) * weight + bias + residual),
    m = (1 - strength) * mean + strength * population_mean,   v likewise

    Strength 0 is the plain norm, 1 is batch norm in evaluation. Gradients pass through mean and
    var. The population's statistics stay as they are; where the pattern drops n, evaluation uses
    them alone, as batch norm does.

    Args:
        num_channels: C, the size of axis 1.
        pattern: such as "n (g=4 c) ... -> n g", sizes written in.
        strength: 0 to 1; see `set_strength`. It is part of the state_dict.
        eps, affine, bias, activation, device, dtype: as in `normlab.Norm`.

    Shape: (N, C, ...) -> (N, C, ...), same dtype and memory format.

    Raises:
        PatternError: the pattern does not fit the channels.
        ValueError: a strength outside 0 to 1, or as in `normlab.Norm`.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> plain = nn.GroupNorm(3, 6)
    >>> torch.allclose(Shrunk(6, "n (g=3 c) ... -> n g", strength=0.0)(x), plain(x), atol=1e-5)
    True
    """

    population_mean: Tensor
    population_var: Tensor

    def __init__(
        self,
        num_channels: int,
        pattern: str,
        *,
        strength: float,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        check_eps(eps)
        check_activation(activation)
        check_strength(strength)
        self.num_channels = num_channels
        self.pattern = patterns.bind(pattern)
        self.strength = float(strength)
        self.eps = eps
        self.activation = activation
        place: Any = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_channels, **place)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels, **place)) if affine and bias else None
        sizes, shared = channel_axes(self.pattern, num_channels)
        kept = [size for axis, size in enumerate(sizes) if axis not in shared]
        self.register_buffer("population_mean", torch.zeros(kept, **place))
        self.register_buffer("population_var", torch.ones(kept, **place))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        check_rank(x)
        if x.shape[1] != self.num_channels:
            raise ValueError(
                f"Shrunk expected {self.num_channels} channels on axis 1, "
                f"got {x.shape[1]} (shape {show(x.shape)})"
            )
        drops_n = "n" not in patterns.parse(self.pattern).kept
        if self.strength == 1 or (drops_n and not self.training):
            mean, var = self._per_channel()
            return functional.batch_norm(
                x, mean, var, self.weight, self.bias,
                eps=self.eps, activation=self.activation, residual=residual,
            )  # fmt: skip
        if self.strength == 0:
            check_count(x.shape, self.pattern)
            return functional.normalize(
                x, self.pattern, self.weight, self.bias,
                eps=self.eps, activation=self.activation, residual=residual,
            )  # fmt: skip
        check_tensors(x, residual, self.activation, weight=self.weight, bias=self.bias)
        geometry = patterns.geometry(self.pattern, x.shape)
        # population statistics do not differ along kept axes that are no channels
        beside = [
            size if axis in geometry.channels else 1
            for axis, size in enumerate(geometry.split)
            if axis not in geometry.reduced
        ]
        mean, var = (
            (1 - self.strength) * own + self.strength * fixed.to(own.dtype).reshape(beside)
            for own, fixed in zip(
                ops.moments(x, self.pattern, True), (self.population_mean, self.population_var)
            )
        )
        return ops.apply(
            x, mean, var, self.weight, self.bias, residual,
            self.pattern, self.eps, self.activation or "none",
        )  # fmt: skip

    def _per_channel(self) -> Iterator[Tensor]:
        """Population mean and variance, (C,)."""
        sizes, shared = channel_axes(self.pattern, self.num_channels)
        beside = [1 if axis in shared else size for axis, size in enumerate(sizes)]
        for statistic in (self.population_mean, self.population_var):
            yield statistic.reshape(beside).expand(sizes).reshape(-1)

    def get_extra_state(self) -> Tensor:
        """The strength, for state_dict; a tensor, as safetensors hold nothing else."""
        return torch.tensor(self.strength, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.strength = float(state)

    def extra_repr(self) -> str:
        shown = [str(self.num_channels), f'"{self.pattern}"', f"strength={self.strength:g}"]
        shown += [f"eps={self.eps:g}"]
        shown += ["affine=False"] if self.weight is None else []
        shown += [f"activation={self.activation}"] if self.activation else []
        return ", ".join(shown)


def set_strength(model: nn.Module, strength: float) -> int:
    """Set how far all shrunk norms of a model lean on the population; returns how many there are.

    Call it between steps, to go from 1 (frozen batch norm) to 0 (the plain norm) while training.

    Raises:
        SurgeryError: the model has none.
        ValueError: a strength outside 0 to 1.

    >>> model = nn.Sequential(Shrunk(6, "n c ... -> n", strength=1.0))
    >>> set_strength(model, 0.5), model[0].strength
    (1, 0.5)
    """
    check_strength(strength)
    layers = [m for m in model.modules() if isinstance(m, Shrunk)]
    if not layers:
        raise SurgeryError(
            'no norm of the model has a strength; make them with convert(model, "group", strength=)'
        )
    for layer in layers:
        layer.strength = float(strength)
    return len(layers)


def check_strength(strength: Any) -> None:
    """Raise unless it is a number from 0 to 1."""
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not is_number or not 0 <= strength <= 1:
        raise ValueError(
            f"strength is a number from 0 (statistics of the input) to 1 (of the population), "
            f"got {strength!r}"
        )
