"""Mean and variance of all that enters a norm, over batches and processes, in float64."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from normlab import ops, running
from normlab import pattern as patterns
from normlab.layer import Norm
from normlab.surgery.layers import SurgeryError


def is_tracked(layer: nn.Module) -> bool:
    """Whether a layer is a norm that keeps running statistics."""
    is_norm = isinstance(layer, _BatchNorm | _InstanceNorm | Norm)
    return is_norm and layer.running_mean is not None and layer.running_var is not None


def check_tracked(name: str, layer: Any) -> None:
    """Raise where running statistics cannot be set."""
    if is_lazy(layer.running_mean):
        raise SurgeryError(f"{name} ({type(layer).__name__}) has no size yet; run one batch first")
    if type(layer).__module__.startswith("torch.ao.nn.quantized"):
        raise SurgeryError(f"{name} is quantized; do this before quantizing")


class Moments:
    """Count, mean and sum of squared deviations of what enters a norm, one of each per channel.

    Batches are merged by Chan's rule, so that how the data are split makes no difference. A norm
    whose statistics are each sample's own (instance norm) keeps running averages of those: then
    samples are counted, and the sum is that of their variances.

    Source: Chan et al. 1983, https://doi.org/10.1080/00031305.1983.10483115, eq. 1.5.

    >>> moments = Moments(nn.BatchNorm1d(1))
    >>> for batch in ([[1.0], [2.0]], [[6.0]]):
    ...     moments.add(torch.tensor(batch))
    >>> [s.item() for s in moments.result()]
    [3.0, 7.0]
    """

    def __init__(self, layer: nn.Module) -> None:
        self._pattern = _pattern(layer)
        self._center: bool = getattr(layer, "center", True)
        self.per_sample = "n" in patterns.parse(self._pattern).kept
        self._no_batch_dim = no_batch_dim(layer)
        running: Any = layer.running_mean
        device = "cpu" if running.device.type == "mps" else running.device  # it has no float64
        self.count = 0
        self.mean, self.squares = torch.zeros(2, *running.shape, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Take in a batch, (N, C, ...)."""
        x = x[None] if x.dim() == self._no_batch_dim else x
        if not x.numel():
            return
        geometry = patterns.geometry(self._pattern, x.shape)
        mean, var = ops.moments(x, self._pattern, self._center)
        spread = running.per_channel(torch.stack([mean, var, var]), geometry)
        mean, var, _ = spread.to(self.mean.device, torch.float64)
        if self.per_sample:
            var = var * (geometry.count / max(geometry.count - self._center, 1))
        count = x.shape[0] if self.per_sample else geometry.count
        self._merge(count, mean, var * count)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares
        if not self.per_sample:
            self.squares = self.squares + delta * delta * (self.count / total * count)
        self.count = total

    def over_ranks(self) -> "Moments":
        """Those of all processes; the same everywhere, whoever had how many or none."""
        if not is_distributed():
            return self
        mean_of = torch.cat([self.mean * self.count, self.mean.new_tensor([float(self.count)])])
        distributed.all_reduce(mean_of)
        total = int(mean_of[-1])
        if not total:
            return self
        mean = mean_of[:-1] / total
        away = 0 if self.per_sample else self.count * (self.mean - mean) ** 2
        squares = self.squares + away
        distributed.all_reduce(squares)
        self.count, self.mean, self.squares = total, mean, squares
        return self

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean, and variance as torch's running_var has it: unbiased; or 0, and the mean square."""
        lost = 0 if self.per_sample else int(self._center)
        return self.mean, self.squares / (self.count - lost)


def is_distributed() -> bool:
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def gathered(value: Any) -> list[Any]:
    """What every process has; only this one's where there is one."""
    if not is_distributed():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def set_statistics(
    name: str, layer: nn.Module, statistics: Iterable[Tensor], num_batches: int
) -> None:
    """Write running statistics in place, as if they were averages over so many batches.

    Raises:
        SurgeryError: they are not finite in the layer's type.
    """
    for key, value in zip(("running_mean", "running_var"), statistics):
        buffer: Any = getattr(layer, key)
        value = value.to(buffer.device, buffer.dtype)
        wrong = int((~value.isfinite()).sum())
        if wrong:
            raise SurgeryError(
                f"{name}: population statistics of {wrong} of {len(value)} channels are not finite "
                f"in {buffer.dtype}; look for NaN or infinity in the data and in the layers before"
            )
        buffer.copy_(value)
    if isinstance(counter := getattr(layer, "num_batches_tracked", None), Tensor):
        counter.fill_(num_batches)


def _pattern(layer: nn.Module) -> str:
    """Over what a layer's running statistics average; slices of the batch are not told apart."""
    if not isinstance(layer, Norm):
        return "n c ... -> n c" if isinstance(layer, _InstanceNorm) else running.PER_CHANNEL
    parsed = patterns.parse(layer.pattern)
    if "n" in parsed.kept:
        return layer.pattern
    names = [f"{n}={parsed.sizes[n]}" if n in parsed.sizes else n for n in parsed.axes[1]]
    kept = [n for n in parsed.axes[1] if n in parsed.kept]
    return f"n ({' '.join(names)}) ... -> {' '.join(kept)}"


def no_batch_dim(layer: Any) -> int:
    """Axes of an input without a batch axis; 0 where there must be one."""
    return layer._get_no_batch_dim() if isinstance(layer, _InstanceNorm) else 0
