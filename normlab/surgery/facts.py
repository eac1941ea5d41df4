"""What `diagnose` measures at each norm, over a data set and in evaluation mode."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normlab import functional, ops
from normlab import pattern as patterns
from normlab.layer import Norm
from normlab.surgery.layers import Site, sites
from normlab.surgery.population import Moments, is_tracked, no_batch_dim

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, Norm)
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_Outputs = dict[int, tuple[Tensor, int, "Facts"]]  # by id: output, its version, and of which norm


@dataclass(eq=False)
class Facts:
    """One norm and what passed through it; statistics are float64 on the CPU, one per channel.

    Args:
        name, layer: of the norm in the model that is diagnosed.
        tracked: it keeps running statistics.
        pooled: they are over the batch, and not averages of each sample's own.
        mean, var: of the population, unbiased.
        running_mean, running_var: what the model had.
        order: when it ran first, among norms; -1 if it never did.
        samples, batches: how many passed.
        values, fewest: per statistic, in the largest and the smallest batch.
        between: sum over samples of (mean of the sample - mean)².
        batch_between: sum over batches of samples · (mean of the batch - mean)².
        square_away: sum over samples of (mean of (x - mean)² - var)², for the error of var.
        noise, train_eval: sum over batches of samples · mean square of what normalizing by the
            batch changes, against the population's and against running statistics.
        low, high: smallest and largest output.
        rectified: a ReLU follows.
    """

    name: str
    layer: Any
    tracked: bool
    pooled: bool
    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor
    order: int = -1
    samples: int = 0
    batches: int = 0
    values: int = 0
    fewest: int = 0
    noise: float = 0.0
    train_eval: float = 0.0
    between: Tensor = field(default_factory=lambda: torch.zeros(()))
    batch_between: Tensor = field(default_factory=lambda: torch.zeros(()))
    square_away: Tensor = field(default_factory=lambda: torch.zeros(()))
    low: Tensor = field(default_factory=lambda: torch.tensor(float("inf")))
    high: Tensor = field(default_factory=lambda: torch.tensor(-float("inf")))
    rectified: bool = False

    @property
    def dead(self) -> Tensor:
        """Channels whose output is constant, or never positive where a ReLU follows; bool (C,)."""
        size = torch.maximum(self.low.abs(), self.high.abs())
        constant = self.high - self.low <= 8 * torch.finfo(torch.float32).eps * size
        return constant | (self.high <= 0) if self.rectified else constant

    @property
    def has_running(self) -> bool:
        """Whether running and population statistics are there to be compared."""
        finite = self.tracked and bool((self.running_mean + self.running_var).isfinite().all())
        return finite and self.order >= 0

    @property
    def std(self) -> Tensor:
        return (self.var + self.layer.eps).sqrt()

    def shift(self) -> Tensor:
        """(running mean - mean) / std; (C,)."""
        return (self.running_mean - self.mean) / self.std

    def log_ratio(self) -> Tensor:
        """log(running variance / variance), both with eps; (C,)."""
        return torch.log((self.running_var.clamp(min=0) + self.layer.eps) / self.std**2)

    def gap(self) -> float:
        """What running statistics change in place of the population's, root mean square.

        In standard deviations of the normalized x, over values and channels.
        """
        there = _change((self.mean, self.var), (self.running_mean, self.running_var), self)
        return float(there.mean().sqrt())

    def between_share(self) -> Tensor:
        """Share of the variance that is between the means of samples; (C,), 0 to 1."""
        return self.between / max(self.samples - 1, 1) / self.std**2

    def sampling_error(self, num_samples: float) -> float:
        """The gap that statistics of so many samples have by chance.

        The mean of n samples strays by sqrt(between share / n) standard deviations, the standard
        deviation by half the relative error of the variance.
        """
        var_error = self.square_away / max(self.samples - 1, 1) / self.std**4
        return float(((self.between_share() + var_error / 4) / num_samples).mean().sqrt())


def _change(given: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], facts: Facts) -> Tensor:
    """Mean square of x normalized otherwise less x normalized as given, for x like the given."""
    (mean, var), (other_mean, other_var) = given, other
    eps = facts.layer.eps
    std, other_std = ((v.clamp(min=0) + eps).sqrt() for v in (var, other_var))
    return ((mean - other_mean) / other_std) ** 2 + var * (1 / std - 1 / other_std) ** 2


def norms_of(model: nn.Module) -> list[Site]:
    """The norms over channels of axis 1."""
    return sites(model, lambda layer: isinstance(layer, NORMS))


@contextmanager
def watching(calibrated: nn.Module, model: nn.Module) -> Iterator[list[Facts]]:
    """Facts about the norms of `model`, filled by what passes through its calibrated copy."""
    found, hooks = [], []
    outputs: _Outputs = {}
    clock = itertools.count()
    for twin, site in zip(norms_of(calibrated), norms_of(model)):
        facts = _new(site, twin.layer)
        found.append(facts)
        hooks.append(
            twin.layer.register_forward_pre_hook(_input_hook(facts, clock), with_kwargs=True)
        )
        hooks.append(twin.layer.register_forward_hook(_output_hook(facts, outputs)))
    for layer in calibrated.modules():
        if isinstance(layer, _RECTIFIERS):
            hooks.append(layer.register_forward_pre_hook(_rectifier_hook(outputs)))
    hooks.append(calibrated.register_forward_hook(lambda *_: outputs.clear()))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _new(site: Site, twin: Any) -> Facts:
    tracked = is_tracked(twin)
    pooled = tracked and not Moments(twin).per_sample
    facts = Facts(
        site.names[0], site.layer, tracked, pooled,
        mean=_copied(twin, "running_mean", tracked), var=_copied(twin, "running_var", tracked),
        running_mean=_copied(site.layer, "running_mean", tracked),
        running_var=_copied(site.layer, "running_var", tracked),
    )  # fmt: skip
    act = getattr(twin, "act", None)  # timm's norms with an activation end in it
    facts.rectified = getattr(twin, "activation", None) == "relu" or isinstance(act, _RECTIFIERS)
    return facts


def _copied(layer: nn.Module, key: str, tracked: bool) -> Tensor:
    if not tracked:
        return torch.zeros(1, dtype=torch.float64)
    return getattr(layer, key).detach().to("cpu", torch.float64, copy=True)


def _input_hook(facts: Facts, clock: Iterator[int]) -> Any:
    def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        x = x[None] if x.dim() == no_batch_dim(layer) else x
        if not x.numel() or x.dim() < 2:
            return
        if facts.order < 0:
            facts.order = next(clock)
        facts.samples += len(x)
        facts.batches += 1
        count = _values_per_statistic(layer, x)
        facts.values = max(facts.values, count)
        facts.fewest = min(facts.fewest or count, count)
        if not facts.tracked:
            return
        means, within = (s.double().cpu() for s in ops.moments(x, "n c ... -> n c", True))
        away = (means - facts.mean) ** 2
        facts.between = facts.between + away.sum(0)
        square = within + away if facts.pooled else within
        facts.square_away = facts.square_away + ((square - facts.var) ** 2).sum(0)
        if not facts.pooled:
            return
        mean = means.mean(0)
        facts.batch_between = facts.batch_between + len(x) * (mean - facts.mean) ** 2
        here = mean, (within + (means - mean) ** 2).mean(0)
        facts.noise += len(x) * float(_change(here, (facts.mean, facts.var), facts).mean())
        running = facts.running_mean, facts.running_var
        facts.train_eval += len(x) * float(_change(here, running, facts).mean())

    return hook


def _output_hook(facts: Facts, outputs: _Outputs) -> Any:
    def hook(_: nn.Module, args: tuple, y: Tensor) -> None:
        if not y.numel() or y.dim() < 2:
            return
        rest = [axis for axis in range(y.dim()) if axis != 1]
        facts.low = torch.minimum(facts.low, y.amin(rest).double().cpu())
        facts.high = torch.maximum(facts.high, y.amax(rest).double().cpu())
        if not y.is_inference():  # those do not count what is written to them
            outputs.clear()  # the ReLU is what comes next, if it comes
            outputs[id(y)] = y, y._version, facts  # kept, so that no other tensor gets this id

    return hook


def _rectifier_hook(outputs: _Outputs) -> Any:
    def hook(_: nn.Module, args: tuple) -> None:
        y, version, facts = outputs.get(id(args[0]) if args else 0, (None, 0, None))
        # what was added in place, as residuals are, makes it another tensor
        if y is not None and facts is not None and y._version == version:
            facts.rectified = True

    return hook


def _values_per_statistic(layer: Any, x: Tensor) -> int:
    if isinstance(layer, Norm):
        return patterns.geometry(layer.pattern, x.shape).count
    if isinstance(layer, nn.GroupNorm):
        return x[0].numel() // layer.num_groups
    kept = isinstance(layer, nn.modules.instancenorm._InstanceNorm)
    pattern = "n c ... -> n c" if kept else functional.PER_CHANNEL
    return patterns.geometry(pattern, x.shape).count
