"""Norms that are made of several: of several patterns, or of one norm for each domain."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normlab import functional, moments, ops, running
from normlab.checks import check_count, check_tensors, check_whole, refuse_mask
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm, count_batch, next_momentum
from normlab.norms.batch import BatchNorm, sliced
from normlab.norms.elements import begun, finished, of_channels, per_channel, scaled
from normlab.norms.sample import InstanceNorm, LayerNorm


class BatchInstanceNorm(Norm, name="batch_instance", aliases=("bin",)):
    """A learned mixture of batch norm and instance norm in each channel.

    y = (gate * batch(x) + (1 - gate) * instance(x)) * weight + bias,   0 <= gate <= 1

    `gate` is a parameter (C,), starting at 1. It is clipped where it is used; its gradient is not,
    so that a gate driven past an end can come back. The paper clips the parameter itself after each
    step (eq. 4), with torch.no_grad(): layer.gate.clamp_(0, 1), which keeps it from drifting. Gates
    learn slowly: the paper's code gives them 10 times the learning rate of the network, and no
    weight decay, in a parameter group of their own.

    Args:
        num_channels: C, the size of axis 1.
        norm_batch_size: as in `BatchNorm`.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), with more than one position.

    Raises:
        ValueError: one position, so one value per statistic.

    Source: Nam and Kim 2018, https://arxiv.org/abs/1805.07925, eq. 3.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> torch.allclose(BatchInstanceNorm(3)(x), BatchNorm(3)(x), atol=1e-6)
    True
    """

    pattern = PER_CHANNEL
    parts = {"batch": PER_CHANNEL, "instance": InstanceNorm.pattern}
    can_recompute = False
    spec_options = {"n": "norm_batch_size"}

    def __init__(
        self, num_channels: int, *, norm_batch_size: int | None = None, **options: Any
    ) -> None:
        self.pattern = sliced(self.pattern, norm_batch_size)
        super().__init__(num_channels, **options)
        place: Any = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.gate = nn.Parameter(torch.ones(num_channels, **place))

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        self.check_input(x)
        refuse_mask(self.name, mask)
        check_tensors(
            x, residual, self.activation, gate=self.gate, weight=self.weight, bias=self.bias
        )
        check_count(x.shape, InstanceNorm.pattern)
        batch = functional.with_running(
            x, self.pattern, self.running_mean, self.running_var, eps=self.eps,
            training=self.training or not self.track_running_stats, momentum=next_momentum(self),
            process_group=moments.processes(self),
        )  # fmt: skip
        count_batch(self)
        instance = functional.normalize(x, InstanceNorm.pattern, eps=self.eps)
        gate = self.gate + (self.gate.clamp(0, 1) - self.gate).detach()
        y = torch.lerp(instance, batch, per_channel(gate, x))
        return finished(self, x, scaled(self, y), residual)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.gate)


class SwitchableNorm(Norm, name="switchable"):
    """A learned mixture of the statistics of instance, layer and batch norm.

    y = (x - mean) / sqrt(var + eps) * weight + bias
    mean = p · (mean_in, mean_ln, mean_bn),   p = softmax(mean_weight)
    var = q · (var_in, var_ln, var_bn),   q = softmax(var_weight)

    `mean_weight` and `var_weight` are parameters (3,), starting at 1; all channels share them. Only
    the statistics of batch norm have running ones, for evaluation. All follow from those of each
    sample and channel. All variances are biased (in the paper's code, those of instance norm are
    not); as for batch norm the running one is unbiased. The paper's momentum of 0.9 is our 0.1.

    Shape: (N, C, ...) -> (N, C, ...), with more than one position.

    Raises:
        ValueError: one position, so one value per statistic of instance norm.

    Source: Luo et al. 2018, https://arxiv.org/abs/1806.10779, eq. 3 to 5.

    >>> x, layer = torch.randn(8, 3, 4, 4), SwitchableNorm(3)
    >>> for chosen in (layer.mean_weight, layer.var_weight):
    ...     _ = chosen.data.copy_(torch.tensor([0.0, 0.0, 99.0]))
    >>> torch.allclose(layer(x), BatchNorm(3)(x), atol=1e-5)
    True
    """

    pattern = PER_CHANNEL
    parts = {
        "instance": InstanceNorm.pattern, "layer": LayerNorm.pattern, "batch": PER_CHANNEL,
    }  # fmt: skip
    can_recompute = False

    def __init__(self, num_channels: int, **options: Any) -> None:
        super().__init__(num_channels, **options)
        place: Any = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.mean_weight = nn.Parameter(torch.ones(3, **place))
        self.var_weight = nn.Parameter(torch.ones(3, **place))

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        x = begun(self, x, residual, mask, x.dtype)
        check_count(x.shape, InstanceNorm.pattern)
        mean, var = ops.moments(x, InstanceNorm.pattern, True)  # (n, c)
        means, variances = [mean], [var]
        of_layer = mean.mean(1, keepdim=True)
        means.append(of_layer)
        variances.append((var + (mean - of_layer).square()).mean(1, keepdim=True))
        of_batch = of_channels(self, x)
        for both, one in zip((means, variances), of_batch):
            both.append(one.to(mean.dtype))
        mixed: list[Any] = []
        for logits, each in ((self.mean_weight, means), (self.var_weight, variances)):
            share = logits.to(mean.dtype).softmax(0)
            mixed.append(share[0] * each[0] + share[1] * each[1] + share[2] * each[2])
        y = running.applied(
            x, mixed[0], mixed[1], InstanceNorm.pattern, self.weight, self.bias, self.eps,
            self.activation, residual, recompute=False,
        )  # fmt: skip
        count_batch(self)
        return y

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)


class DomainBatchNorm(Norm, name="domain_batch", aliases=("dsbn",)):
    """A batch norm for each domain: statistics, weight and bias of their own.

    y = (x - mean_d) / sqrt(var_d + eps) * weight_d + bias_d,   statistics "n c ... -> c"

    A batch is of one domain, which is said before it comes: `set_domain(model, "target")`, or
    `with domain(model, "target"):`. Nothing is assumed: among several domains, a batch of which it
    was not said is refused. The layer itself has the tensors of the first domain, so that
    checkpoints of batch norm load into that; those of the others are the batch norms `domain1`, ….

    Args:
        num_channels: C, the size of axis 1.
        domains: their names, or how many, which are then called 0, 1, ….
        options: see `Norm`, for every domain.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: there are several domains and none was said; no domain or a name twice; or one
            value per channel in training.

    Source: Chang et al. 2019, https://arxiv.org/abs/1906.03950, section 3.2.

    >>> x, layer = torch.randn(8, 3, 4, 4), DomainBatchNorm(3, domains=["photo", "sketch"])
    >>> with domain(layer, "sketch"):
    ...     torch.equal(layer(x), BatchNorm(3)(x))
    True
    """

    pattern = PER_CHANNEL
    spec_options = {"": "domains"}

    def __init__(
        self, num_channels: int, *, domains: int | Sequence[str] = 1, **options: Any
    ) -> None:
        super().__init__(num_channels, **options)
        if isinstance(domains, str):
            raise TypeError(f"domains are a number or a list of names, got {domains!r}")
        if not isinstance(domains, Sequence):
            check_whole("domains", domains)
            domains = list(map(str, range(domains)))
        self.domains = tuple(domains)
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise ValueError(f"domains must be at least one, each once, got {list(self.domains)}")
        for at in range(1, len(self.domains)):
            other = BatchNorm(num_channels, **{**options, "activation": None})
            self.add_module(f"domain{at}", other)
        self.domain: str | None = None if len(self.domains) > 1 else self.domains[0]

    def forward(self, x: Tensor, residual: Tensor | None = None, **more: Any) -> Tensor:
        if self.domain is None:
            raise ValueError(
                f"the domain of this batch was not said; there are {', '.join(self.domains)}. "
                f'Call normlab.norms.set_domain(model, "{self.domains[0]}") before it'
            )
        at = self.domains.index(self.domain)
        if at:
            y = self.get_submodule(f"domain{at}")(x, **more)
            return finished(self, x, y, residual)
        return super().forward(x, residual, **more)

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        for other in self._others():
            other.reset_running_stats()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for other in self._others():
            other.reset_parameters()

    def _others(self) -> Iterator[BatchNorm]:
        """Of all domains but the first."""
        return (child for child in self.children() if isinstance(child, BatchNorm))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, domains={list(self.domains)}, domain={self.domain!r}"


def set_domain(model: nn.Module, which: str | int) -> None:
    """Say of which domain the coming batches are, to every `DomainBatchNorm` of a model.

    Args:
        which: a name, or the number of the domain.

    Raises:
        LookupError: a layer has no such domain, or the model no such layer; nothing is changed.

    >>> layer = DomainBatchNorm(3, domains=2)
    >>> set_domain(nn.Sequential(layer), 1)
    >>> layer.domain
    '1'
    """
    chosen = [(layer, _name(name, layer, which)) for name, layer in _by_domain(model)]
    if not chosen:
        raise LookupError(
            f"domain {which!r}: {type(model).__name__} has no DomainBatchNorm; build it with "
            'norm "domain_batch:2"'
        )
    for layer, name in chosen:
        layer.domain = name


@contextlib.contextmanager
def domain(model: nn.Module, which: str | int) -> Iterator[None]:
    """Within, batches are of that domain; after, of the one before.

    The backward pass of recomputed activations (torch.utils.checkpoint) has to be within, too.

    Raises:
        LookupError: as `set_domain`.
    """
    before = [(layer, layer.domain) for _, layer in _by_domain(model)]
    set_domain(model, which)
    try:
        yield
    finally:
        for layer, name in before:
            layer.domain = name


def _by_domain(model: nn.Module) -> list[tuple[str, DomainBatchNorm]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, DomainBatchNorm)]


def _name(name: str, layer: DomainBatchNorm, which: str | int) -> str:
    """The name of a domain of a layer."""
    if which in layer.domains:
        return str(which)
    is_number = isinstance(which, int) and not isinstance(which, bool)
    if is_number and 0 <= int(which) < len(layer.domains):
        return layer.domains[int(which)]
    raise LookupError(
        f"domain {which!r}: {name or 'the layer'} has {', '.join(layer.domains)}"
        f" (0 to {len(layer.domains) - 1})"
    )
