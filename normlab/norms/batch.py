"""Norms whose statistics are those of the batch, with running averages for evaluation."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from normlab import functional
from normlab.checks import check_count, check_tensors, refuse_mask
from normlab.functional import PER_CHANNEL
from normlab.layer import Norm, count_batch, next_momentum
from normlab.norms.elements import finished
from normlab.pattern import bind

SLICES = "(b n) c ... -> b c"  # batch norm over slices of the batch, "ghost batch norm"


class BatchNorm(Norm, name="batch", aliases=("bn",)):
    """One mean and variance per channel over the batch; running averages in evaluation.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> c"

    Args:
        num_channels: C, the size of axis 1.
        norm_batch_size: samples that share statistics in training, "(b n) c ... -> b c"; must
            divide the batch. None is the whole batch. Running statistics are those averaged over
            the slices.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: one value per channel in training.
        PatternError: norm_batch_size does not divide the batch.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167; in slices, Hoffer et al. 2017,
    https://arxiv.org/abs/1705.08741.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> halves = torch.cat([BatchNorm(3)(x[:4]), BatchNorm(3)(x[4:])])
    >>> torch.allclose(BatchNorm(3, norm_batch_size=4)(x), halves, atol=1e-6)
    True
    """

    pattern = PER_CHANNEL
    spec_options = {"n": "norm_batch_size"}

    def __init__(
        self, num_channels: int, *, norm_batch_size: int | None = None, **options: Any
    ) -> None:
        self.pattern = sliced(self.pattern, norm_batch_size)
        super().__init__(num_channels, **options)


class SyncBatchNorm(Norm, name="sync_batch", aliases=("sync_bn",)):
    """Batch norm over the batches of all processes of torch.distributed, on any device.

    mean = Σ n_i mean_i / n,   var = Σ n_i (var_i + (mean_i - mean)²) / n,   n = Σ n_i values

    Exactly batch norm of the joined batch, gradients too; processes may have different numbers of
    samples, and none. One collective forward, one backward. In evaluation, in a single process and
    where torch.distributed is not at work it is batch norm. `process_group`, an attribute, names
    the processes; None is all. Other norms whose pattern drops n take `synchronize=True`, and
    `normlab.synchronize(model)` tells all in a model.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: one value per channel in training, in a single process.

    Source: torch.nn.SyncBatchNorm; Peng et al. 2018, https://arxiv.org/abs/1711.07240.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> torch.equal(SyncBatchNorm(3)(x), BatchNorm(3)(x))
    True
    """

    pattern = PER_CHANNEL

    def __init__(self, num_channels: int, *, synchronize: bool = True, **options: Any) -> None:
        super().__init__(num_channels, synchronize=synchronize, **options)


class GhostBatchNorm(Norm, name="ghost_batch", aliases=("gbn",)):
    """Batch norm over slices of the batch: the normalization batch inside the SGD batch.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "(b n) c ... -> b c"

    Slices are taken in order. Samples left over at the end are a slice of their own, smaller than
    the others; `BatchNorm(norm_batch_size=)` refuses them. Running statistics are averages over the
    slices, each with the weight of its samples.

    Args:
        num_channels: C, the size of axis 1.
        norm_batch_size: n, samples that share statistics in training. The default is that of
            networks trained with 32 images per GPU.
        options: see `Norm`; recompute has no effect on a batch with a rest.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: a slice has one value per channel, in training.

    Source: Hoffer et al. 2017, https://arxiv.org/abs/1705.08741, algorithm 1; sizes, Wu and Johnson
    2021, https://arxiv.org/abs/2105.07576.

    >>> x = torch.randn(10, 3, 4, 4)
    >>> slices = torch.cat([BatchNorm(3)(part) for part in x.split(4)])
    >>> torch.allclose(GhostBatchNorm(3, norm_batch_size=4)(x), slices, atol=1e-6)
    True
    """

    pattern = SLICES
    parts = {"slices": bind(SLICES, n=2)}
    spec_options = {"": "norm_batch_size", "n": "norm_batch_size"}

    def __init__(self, num_channels: int, *, norm_batch_size: int = 32, **options: Any) -> None:
        super().__init__(num_channels, n=norm_batch_size, **options)
        self.norm_batch_size = norm_batch_size

    def forward(self, x: Tensor, residual: Tensor | None = None, **more: Any) -> Tensor:
        self.check_input(x)
        rest = x.shape[0] % self.norm_batch_size
        uses_running = self.track_running_stats and not self.training
        if uses_running or not rest:
            return super().forward(x, residual, **more)
        if more.get("mask") is not None:
            raise ValueError(
                f"a mask needs a batch that splits into slices of {self.norm_batch_size} samples, "
                f"got {x.shape[0]}; pad the batch, or leave out its last {rest}"
            )
        cut = x.shape[0] - rest
        smaller = bind(SLICES, n=rest)
        check_count(x[cut:].shape, smaller)
        # all samples weigh the same: running · (1 - first) · (1 - last) = running · (1 - momentum)
        momentum = next_momentum(self)
        last = momentum * (rest / x.shape[0])
        parts: list[Any] = [(slice(cut, None), smaller, last)]
        if cut:
            parts.insert(0, (slice(cut), self.pattern, (momentum - last) / (1 - last)))
        done = []
        for part, pattern, share in parts:
            y = functional.with_running(
                x[part], pattern, self.running_mean, self.running_var, self.weight, self.bias,
                training=True, momentum=share, eps=self.eps, activation=self.activation,
                residual=None if residual is None else residual[part],
            )  # fmt: skip
            done.append(y)
        count_batch(self)
        return torch.cat(done) if cut else done[0]


class FrozenBatchNorm(Norm, name="frozen_batch", aliases=("fbn",)):
    """Batch norm that moves and learns nothing: an affine map by what was loaded into it.

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias,   in training too

    Statistics, weight and bias are buffers, as in torchvision's FrozenBatchNorm2d, with its keys
    and for any rank; checkpoints of batch norm load, their num_batches_tracked is left out. Its
    `training` is always False. `normlab.freeze` does this to norms a model has already.

    Args:
        num_channels: C, the size of axis 1.
        track_running_stats: may not be asked for; the statistics never move.
        options: see `Norm`; momentum has no effect.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        ValueError: track_running_stats is True.

    Source: He et al. 2015, https://arxiv.org/abs/1512.03385, appendix A;
    torchvision.ops.FrozenBatchNorm2d.

    >>> x, batch = torch.randn(8, 3, 4, 4), BatchNorm(3)
    >>> frozen = FrozenBatchNorm(3)
    >>> _ = batch(x), frozen.load_state_dict(batch.state_dict())
    >>> torch.equal(frozen(x), batch.eval()(x))
    True
    """

    pattern = PER_CHANNEL
    can_synchronize = False

    def __init__(
        self, num_channels: int, *, track_running_stats: bool | None = None, **options: Any
    ) -> None:
        if track_running_stats:
            raise ValueError(
                "frozen_batch never moves its statistics, got track_running_stats=True; "
                "leave it out, or use batch norm"
            )
        super().__init__(num_channels, track_running_stats=True, **{**options, "momentum": 0.0})
        self.num_batches_tracked = None
        for name in ("weight", "bias"):
            parameter = getattr(self, name)
            delattr(self, name)
            self.register_buffer(name, None if parameter is None else parameter.detach())

    @property
    def training(self) -> bool:  # type: ignore[override]
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        pass

    @classmethod
    def uses_batch(cls) -> bool:
        return False

    @property
    def mixes_samples(self) -> bool:
        return False

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *rest: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class TorchBatchNorm(Norm, name="torch_bn"):
    """Batch norm as torch computes it: the control for ours.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> c"

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: torch.nn.functional.batch_norm.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> torch.allclose(TorchBatchNorm(3)(x), BatchNorm(3)(x), atol=1e-5)
    True
    """

    pattern = PER_CHANNEL
    can_recompute = False
    can_synchronize = False

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        self.check_input(x)
        refuse_mask(self.name, mask)
        check_tensors(x, residual, self.activation)
        training = self.training or not self.track_running_stats
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training,
            float(next_momentum(self)), self.eps,
        )  # fmt: skip
        count_batch(self)
        return finished(self, x, y, residual)


def sliced(pattern: str, norm_batch_size: int | None) -> str:
    """The pattern, over slices of so many samples; None is the whole batch."""
    return pattern if norm_batch_size is None else bind(SLICES, n=norm_batch_size)
