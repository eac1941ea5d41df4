"""What norms share that are no single pattern: wide elements, channels' statistics, the finish."""

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

from normlab import moments, running
from normlab import pattern as patterns
from normlab.checks import (
    check_count,
    check_movable,
    check_running,
    check_tensors,
    refuse_mask,
)
from normlab.layer import Norm, next_momentum
from normlab.ops import ACTIVATIONS, compute_dtype, statistics_dtype
from normlab.running import PER_CHANNEL

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def begun(
    layer: Norm,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    dtype: torch.dtype | None = None,
    **parameters: Tensor | None,
) -> Tensor:
    """x, found right, in a wide type; its gradient comes back in the type and format of x.

    Args:
        dtype: None is the type elements are computed in.
        parameters: those of channels besides weight and bias.
    """
    layer.check_input(x)
    refuse_mask(layer.name, mask)
    check_tensors(x, residual, layer.activation, weight=layer.weight, bias=layer.bias, **parameters)
    dtype = dtype or compute_dtype(x)
    is_followed = (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
    return x.to(dtype) if is_followed or not x.requires_grad else _Widened.apply(x, dtype)


def of_channels(layer: Norm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (C,): the batch's, which moves the running ones, or the running.

    Gradients flow through those of the batch. x was found right, see `begun`.
    """
    running_mean, running_var = layer.running_mean, layer.running_var
    uses_batch = layer.training or not layer.track_running_stats
    check_running(x, running_mean, running_var, uses_batch)
    if not uses_batch:
        assert running_mean is not None
        assert running_var is not None
        wide = statistics_dtype(x)
        return running_mean.to(wide), running_var.to(wide)
    check_movable(running_mean)
    group = moments.processes(layer)
    if group is None:
        check_count(x.shape, PER_CHANNEL)
    mean, var, count = moments.counted(x, PER_CHANNEL, True, None, group)
    if running_mean is not None and running_var is not None:
        geometry = patterns.geometry(PER_CHANNEL, x.shape)
        found = (mean, var, count)
        running.track(running_mean, running_var, found, geometry, next_momentum(layer))
    return mean, var


def per_channel(parameter: Tensor, y: Tensor) -> Tensor:
    """A parameter (C,) in the type of y, (N, C, ...), ready to broadcast over it."""
    return parameter.to(y.dtype).reshape(-1, *[1] * (y.dim() - 2))


def per_sample(statistic: Tensor, y: Tensor) -> Tensor:
    """A statistic (N, C) in the type of y, (N, C, ...), ready to broadcast over it."""
    return statistic.to(y.dtype).reshape(*statistic.shape, *[1] * (y.dim() - 2))


def scaled(layer: Norm, y: Tensor) -> Tensor:
    """y * weight + bias"""
    if layer.weight is not None:
        y = y * per_channel(layer.weight, y)
    return y if layer.bias is None else y + per_channel(layer.bias, y)


def finished(layer: Norm, x: Tensor, y: Tensor, residual: Tensor | None) -> Tensor:
    """activation(y + residual), in the type of x."""
    y = y if residual is None else y + residual.to(y.dtype)
    return ACTIVATIONS[layer.activation or "none"][0](y).to(x.dtype)


class _Widened(torch.autograd.Function):
    """Plain operations would leave the format of the gradient to that of the cotangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        formats = (torch.contiguous_format, _FORMATS.get(x.dim(), torch.contiguous_format))
        ctx.format = next((f for f in formats if x.is_contiguous(memory_format=f)), None)
        ctx.dtype = x.dtype
        return x.view_as(x) if x.dtype == dtype else x.to(dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx = dy.to(ctx.dtype)
        # one that stands for several, as in is_grads_batched=True, has no memory
        if ctx.format is None or is_functorch_wrapped_tensor(dy) or is_legacy_batchedtensor(dy):
            return dx, None
        return dx.contiguous(memory_format=ctx.format), None
