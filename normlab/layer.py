"""Norm: the layer every norm of the catalogue is, with parameters and running statistics.

A subclass states its pattern and its name; that it needs running statistics, or that it works on
one sample, follows from the pattern.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normlab import functional
from normlab import pattern as patterns
from normlab.checks import (
    check_activation,
    check_channels,
    check_count,
    check_eps,
    check_joinable,
    check_momentum,
    check_rank,
    refuse_script,
)
from normlab.moments import processes
from normlab.pattern import show
from normlab.recompute import check_recompute

CATALOGUE: dict[str, type["Norm"]] = {}  # full names, in the order they are written
ALIASES: dict[str, str] = {}  # short names of the literature


class Norm(nn.Module):
    """A layer that normalizes as its pattern says.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)

    If the pattern drops n, statistics are those of the batch in training and running averages in
    evaluation; else they are each sample's own, always.

    Args:
        num_channels: C, the size of axis 1.
        eps: added to the variance, so in squared units of x.
        affine: learn weight and bias, each (C,), starting at 1 and 0.
        bias: learn the bias, where `affine`.
        momentum: weight of the new batch in the running statistics; None averages all batches.
        track_running_stats: keep running statistics; None does iff the pattern drops n.
        activation: applied last; a name of `normlab.functional.normalize`, or None.
        synchronize: share statistics in training with the other processes of torch.distributed, or
            those of the attribute `process_group`; the pattern must drop n.
        recompute: what later layers save of y is rebuilt in the backward pass; see
            `normlab.recompute`.
        sizes: of axes the pattern names.

    Shape: (N, C, ...) -> (N, C, ...), same dtype; see `normalize` for what is computed in which.

    Raises:
        PatternError: the sizes do not fit the channels.
        ValueError: eps or momentum out of range, recompute where it cannot be, or the input has
            other channels.
    """

    pattern: str
    name: ClassVar[str]
    # the patterns of a norm that is made of several, by what they are; for pictures
    parts: ClassVar[dict[str, str]]
    # what may follow the name and a colon in a spec: "" is the option of a bare value
    spec_options: ClassVar[dict[str, str]] = {}
    can_recompute: ClassVar[bool] = True  # y is one function of x and its statistics
    can_synchronize: ClassVar[bool] = True  # forward shares statistics of the batch when told to
    center: ClassVar[bool] = True  # subtract the mean; False is root-mean-square normalization
    _version = 2  # of the state_dict: 2 has num_batches_tracked, as in torch

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    __prepare_scriptable__ = refuse_script

    def __init_subclass__(cls, *, name: str, aliases: tuple[str, ...] = (), **rest: Any) -> None:
        super().__init_subclass__(**rest)
        taken = CATALOGUE.get(ALIASES.get(name, name))
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise ValueError(f"norm {name!r} is {taken.__qualname__} already; choose another name")
        cls.name = name
        CATALOGUE[name] = cls
        ALIASES.update(dict.fromkeys(aliases, name))

    def __init__(
        self,
        num_channels: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        momentum: float | None = 0.1,
        track_running_stats: bool | None = None,
        activation: str | None = None,
        recompute: bool = False,
        synchronize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **sizes: int,
    ) -> None:
        super().__init__()
        check_channels(num_channels)
        check_eps(eps)
        check_momentum(momentum)
        check_activation(activation)
        check_recompute(recompute)
        if recompute and not self.can_recompute:
            raise ValueError(
                f"recompute=True is for norms whose output is one pattern of the input, "
                f"which {self.name!r} is not; leave it out"
            )
        self.num_channels = num_channels
        self.eps = eps
        self.momentum = momentum
        self.activation = activation
        self.recompute = recompute
        self.pattern = patterns.bind(self.pattern, **sizes)
        if synchronize:
            if not self.can_synchronize:
                raise ValueError(f"norm {self.name!r} does not synchronize; use sync_batch")
            check_joinable(self.pattern)
        self.synchronize = synchronize
        self.process_group: Any = None  # all processes
        if track_running_stats is None:
            track_running_stats = self.mixes_samples
        self.track_running_stats = track_running_stats
        place: Any = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_channels, **place)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels, **place)) if affine and bias else None
        tracked = (
            torch.zeros(num_channels, **place),
            torch.ones(num_channels, **place),
            torch.tensor(0, dtype=torch.long, device=device),
        )
        names = ("running_mean", "running_var", "num_batches_tracked")
        for key, value in zip(names, tracked):
            self.register_buffer(key, value if track_running_stats else None)

    @classmethod
    def uses_batch(cls) -> bool:
        """Whether a layer without options is one that `mixes_samples`."""
        return "n" not in patterns.parse(cls.pattern).kept

    @property
    def mixes_samples(self) -> bool:
        """Whether a sample's output depends on the other samples of the batch, in training."""
        return "n" not in patterns.parse(self.pattern).kept

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """y; where a mask (N, ...) is False, x counts for nothing and y is the bias."""
        self.check_input(x)
        joined = processes(self)
        if not self.track_running_stats:
            if mask is None and joined is None and self.center:
                check_count(x.shape, self.pattern)
            return functional.normalize(
                x, self.pattern, self.weight, self.bias,
                eps=self.eps, activation=self.activation, residual=residual,
                recompute=self.recompute, center=self.center, mask=mask, process_group=joined,
            )  # fmt: skip
        y = functional.with_running(
            x, self.pattern, self.running_mean, self.running_var, self.weight, self.bias,
            training=self.training, momentum=next_momentum(self), eps=self.eps,
            activation=self.activation, residual=residual, recompute=self.recompute,
            center=self.center, mask=mask, process_group=joined,
        )  # fmt: skip
        count_batch(self)
        return y

    def check_input(self, x: Tensor) -> None:
        """Raise unless x is (N, C, ...) with this layer's C."""
        check_rank(x)
        if x.shape[1] != self.num_channels:
            raise ValueError(
                f"{type(self).__name__} expected {self.num_channels} channels on axis 1, "
                f"got {x.shape[1]} (shape {show(x.shape)})"
            )

    def reset_running_stats(self) -> None:
        """Forget the batches seen."""
        for name, start in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            if (statistic := getattr(self, name)) is not None:
                statistic.fill_(start)

    def reset_parameters(self) -> None:
        """Back to the state of a new layer."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        shown = [str(self.num_channels), f'"{self.pattern}"', f"eps={self.eps:g}"]
        shown += ["affine=False"] if self.weight is None else []
        shown += [f"momentum={self.momentum}"] if self.track_running_stats else []
        shown += [f"activation={self.activation}"] if self.activation else []
        shown += ["synchronize=True"] if self.synchronize else []
        shown += ["recompute=True"] if self.recompute else []
        return ", ".join(shown)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *rest: Any
    ) -> None:
        # checkpoints of torch before 0.4.1 do not count batches
        key = prefix + "num_batches_tracked"
        if (local_metadata.get("version") or 1) < 2 and self.num_batches_tracked is not None:
            state_dict.setdefault(key, torch.zeros_like(self.num_batches_tracked))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def next_momentum(layer: Any) -> float | Tensor:
    """Weight of the batch at hand in the running statistics: momentum, or 1/batches if None.

    A tensor where it depends on the count, so that compiled graphs need not read it.
    """
    if layer.momentum is not None:
        return layer.momentum
    if layer.num_batches_tracked is None:
        return 0.0
    wide = torch.promote_types(layer.running_mean.dtype, torch.float32)
    return 1.0 / (layer.num_batches_tracked + 1).to(wide)


def count_batch(layer: Any) -> None:
    """Count a batch in training; after it passed, so that one that is refused leaves no trace."""
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
