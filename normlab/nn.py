"""The norms of torch.nn under their own names, drop-in: same constructors, state and isinstance.

Each class *is* its namesake of torch.nn, computed by normlab, with `activation` and `recompute`
after the other constructor arguments and `residual` after the input:
y = activation(norm(x) + residual).
"""

from typing import Any

import torch
from torch import Tensor

from normlab import functional
from normlab.checks import (
    check_activation,
    check_eps,
    check_groups,
    check_momentum,
    check_rank,
    refuse_script,
)
from normlab.layer import count_batch, next_momentum
from normlab.moments import processes
from normlab.pattern import show
from normlab.recompute import check_recompute
from normlab.running import PER_CHANNEL, with_running

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "SyncBatchNorm",
]


class _Activated:
    """The constructor all share: torch's, then `activation` and `recompute`."""

    activation: str | None
    recompute: bool
    __prepare_scriptable__ = refuse_script

    def __init__(
        self, *args: Any, activation: str | None = None, recompute: bool = False, **options: Any
    ) -> None:
        check_activation(activation)
        check_recompute(recompute)
        super().__init__(*args, **options)
        if (eps := getattr(self, "eps", None)) is not None:
            check_eps(eps)
        check_momentum(getattr(self, "momentum", None))
        self.activation = activation
        self.recompute = recompute

    def extra_repr(self) -> str:
        shown = [super().extra_repr()]  # type: ignore[misc]
        shown += [f"activation={self.activation}"] if self.activation else []
        shown += ["recompute=True"] if self.recompute else []
        return ", ".join(shown)


class _Batch(_Activated):
    synchronize = False  # with other processes

    def forward(
        self: Any, input: Tensor, residual: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        self._check_input_dim(input)
        # without running statistics a layer in evaluation uses the batch's
        training = self.training or (self.running_mean is None and self.running_var is None)
        tracked = not self.training or self.track_running_stats
        y = with_running(
            input,
            PER_CHANNEL,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight, self.bias, training=training, momentum=next_momentum(self), eps=self.eps,
            activation=self.activation, residual=residual, recompute=self.recompute,
            mask=mask, process_group=processes(self),
        )  # fmt: skip
        count_batch(self)
        return y


class _Instance(_Activated):
    def forward(self: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        if input.dim() == self._get_no_batch_dim():
            return self._instance_norm(input[None], None if residual is None else residual[None])[0]
        return self._instance_norm(input, residual)

    def _instance_norm(self: Any, input: Tensor, residual: Tensor | None) -> Tensor:
        check_rank(input)
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} expected {self.num_features} channels on axis 1, "
                f"got {input.shape[1]} (shape {show(input.shape)})"
            )
        y = functional.instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats, next_momentum(self), self.eps,
            activation=self.activation, residual=residual, recompute=self.recompute,
        )  # fmt: skip
        count_batch(self)
        return y


class BatchNorm1d(_Batch, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, with activation; see `normlab.functional.batch_norm`.

    Shape: (N, C) or (N, C, L) -> the same.

    >>> x = torch.randn(4, 3)
    >>> torch.allclose(BatchNorm1d(3)(x), torch.nn.BatchNorm1d(3)(x), atol=1e-5)
    True
    """


class BatchNorm2d(_Batch, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, with activation; see `normlab.functional.batch_norm`.

    Shape: (N, C, H, W) -> the same.

    >>> x = torch.randn(4, 3, 5, 5)
    >>> torch.allclose(BatchNorm2d(3)(x), torch.nn.BatchNorm2d(3)(x), atol=1e-5)
    True
    """


class BatchNorm3d(_Batch, torch.nn.BatchNorm3d):
    """torch.nn.BatchNorm3d, with activation; see `normlab.functional.batch_norm`.

    Shape: (N, C, D, H, W) -> the same.

    >>> x = torch.randn(4, 3, 2, 5, 5)
    >>> torch.allclose(BatchNorm3d(3)(x), torch.nn.BatchNorm3d(3)(x), atol=1e-5)
    True
    """


class SyncBatchNorm(_Batch, torch.nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm, with activation, on any device: statistics of all processes' batches.

    Processes may have different numbers of samples, and none. Where torch.distributed is not at
    work, in evaluation, or in a single process, it is batch norm.

    Shape: (N, C, ...) -> the same.

    >>> x = torch.randn(4, 3, 5, 5)
    >>> torch.allclose(SyncBatchNorm(3)(x), torch.nn.BatchNorm2d(3)(x), atol=1e-5)
    True
    """

    synchronize = True

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_group: Any | None = None
    ) -> torch.nn.Module:
        """As torch's: every batch norm of a model replaced; ours, with the activation they had."""
        made = super().convert_sync_batchnorm(module, process_group)
        if made is module or type(made) is not torch.nn.SyncBatchNorm:
            return made
        new = cls.__new__(cls)
        vars(new).update(vars(made))
        new.activation = getattr(module, "activation", None)
        new.recompute = getattr(module, "recompute", False)
        return new


class InstanceNorm1d(_Instance, torch.nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, with activation; see `normlab.functional.instance_norm`.

    `momentum=None` averages all batches, as it does in batch norm.

    Shape: (N, C, L) or (C, L) -> the same.

    >>> x = torch.randn(4, 3, 5)
    >>> torch.allclose(InstanceNorm1d(3)(x), torch.nn.InstanceNorm1d(3)(x), atol=1e-5)
    True
    """


class InstanceNorm2d(_Instance, torch.nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, with activation; see `normlab.functional.instance_norm`.

    `momentum=None` averages all batches, as it does in batch norm.

    Shape: (N, C, H, W) or (C, H, W) -> the same.

    >>> x = torch.randn(4, 3, 5, 5)
    >>> torch.allclose(InstanceNorm2d(3)(x), torch.nn.InstanceNorm2d(3)(x), atol=1e-5)
    True
    """


class InstanceNorm3d(_Instance, torch.nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, with activation; see `normlab.functional.instance_norm`.

    `momentum=None` averages all batches, as it does in batch norm.

    Shape: (N, C, D, H, W) or (C, D, H, W) -> the same.

    >>> x = torch.randn(4, 3, 2, 5, 5)
    >>> torch.allclose(InstanceNorm3d(3)(x), torch.nn.InstanceNorm3d(3)(x), atol=1e-5)
    True
    """


class GroupNorm(_Activated, torch.nn.GroupNorm):
    """torch.nn.GroupNorm, with activation; see `normlab.functional.group_norm`.

    Shape: (N, C, ...) -> the same.

    Raises:
        PatternError: num_groups does not divide num_channels.

    >>> x = torch.randn(4, 6, 5, 5)
    >>> torch.allclose(GroupNorm(3, 6)(x), torch.nn.GroupNorm(3, 6)(x), atol=1e-5)
    True
    """

    def __init__(self, num_groups: int, num_channels: int, *args: Any, **options: Any) -> None:
        check_groups(num_groups, num_channels)
        super().__init__(num_groups, num_channels, *args, **options)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return functional.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps,
            activation=self.activation, residual=residual, recompute=self.recompute,
        )  # fmt: skip


class LayerNorm(_Activated, torch.nn.LayerNorm):
    """torch.nn.LayerNorm, with activation; see `normlab.functional.layer_norm`.

    Shape: (..., *normalized_shape) -> the same.

    >>> x = torch.randn(4, 6, 8)
    >>> torch.allclose(LayerNorm(8)(x), torch.nn.LayerNorm(8)(x), atol=1e-5)
    True
    """

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return functional.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps,
            activation=self.activation, residual=residual, recompute=self.recompute,
        )  # fmt: skip


class RMSNorm(_Activated, torch.nn.RMSNorm):
    """torch.nn.RMSNorm, with activation; see `normlab.functional.rms_norm`.

    Shape: (..., *normalized_shape) -> the same.

    >>> x = torch.randn(4, 6, 8)
    >>> torch.allclose(RMSNorm(8)(x), torch.nn.RMSNorm(8)(x), atol=1e-5)
    True
    """

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return functional.rms_norm(
            x, self.normalized_shape, self.weight, self.eps,
            activation=self.activation, residual=residual, recompute=self.recompute,
        )  # fmt: skip
