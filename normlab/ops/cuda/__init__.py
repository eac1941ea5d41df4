"""The operators on NVIDIA GPUs: kernels written in Triton, for nearly every pattern.

    whole     a group, or several, kept on the chip: x is read once
    long      a program per group reads it twice
    split     groups cut among programs, whose partial results `merge` puts together
    regions   loops over part of x, tile after tile;  tile, activations  what is done with a tile
    schedule  which of these, in tiles of which size;  launch  starts them;  memory  of tensors

What they do not cover goes to `eager`: float64, patterns of another form than `canonical`, one
value per statistic, empty tensors. Statistics and sums of gradients are float32: variances leave
its range where deviations from the mean exceed 1e19, and x up to 1e15 is safe.

Importing this module needs Triton but no GPU. Where Triton interprets (TRITON_INTERPRET=1 while
this is imported), the kernels run on the CPU.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from normlab import pattern as patterns
from normlab.ops import eager, layout
from normlab.ops.canonical import nearest
from normlab.ops.cuda import launch, memory, schedule
from normlab.ops.cuda.schedule import View
from normlab.ops.cuda.whole import whole_forward
from normlab.ops.device import warn_slow
from normlab.ops.eager import track

__all__ = [
    "apply",
    "apply_backward",
    "moments",
    "normalize",
    "normalize_backward",
    "rebuild",
    "track",
]

INTERPRETED = not isinstance(whole_forward, triton.JITFunction)

_failed: set[str] = set()


def _kernels_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """Plain torch where the function returns None, or its kernels cannot be compiled or started."""
    name = function.__name__

    @functools.wraps(function)
    def first(*args: Any) -> Any:
        if name not in _failed:
            try:
                found = function(*args)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever hinders kernels, plain torch can go on
                _failed.add(name)
                warn_slow(f"as its GPU kernels do not run: {type(error).__name__}: {error}")
            else:
                if found is not None:
                    return found
        return getattr(eager, name)(*args)

    return first


@_kernels_first
def moments(x: Tensor, pattern: str, center: bool) -> tuple[Tensor, Tensor] | None:
    """Mean and biased variance over what the pattern drops."""
    seen = _see(x, pattern)
    if seen is None:
        return None
    mean, var = _empty(x, pattern, 2)
    with _device(x):
        launch.forward(
            seen[0], None, None, None, None, (mean, var, None), seen[1], 0.0, center, "none"
        )  # fmt: skip
    return mean, var


@_kernels_first
def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor] | None:
    """y, and as one tensor mean, var and rstd = 1/sqrt(var + eps)."""
    seen = _see(x, pattern, like=[residual], per_channel=[weight, bias])
    if seen is None:
        return None
    dense, view = seen
    y = torch.empty_like(dense)
    statistics = _empty(x, pattern, 3)
    mean, var, rstd = statistics
    with _device(x):
        launch.forward(
            dense, *memory.parameters(weight, bias), memory.along(dense, residual), y,
            (mean, var, rstd), view, eps, center, activation,
        )  # fmt: skip
    return y if dense is x else layout.as_of(x, y), statistics


@_kernels_first
def rebuild(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    pattern: str,
    activation: str,
) -> Tensor | None:
    """y of `normalize` once more, bit for bit, from the statistics it returned."""
    mean, _, rstd = statistics
    return _applied(x, mean, rstd, weight, bias, residual, pattern, None, activation)


@_kernels_first
def apply(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    activation: str,
) -> Tensor | None:
    """y under statistics that are given."""
    return _applied(x, mean, var, weight, bias, residual, pattern, eps, activation)


def _applied(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float | None,
    activation: str,
) -> Tensor | None:
    """y, `scale` being var, or rstd where eps is None."""
    seen = _see(x, pattern, [residual], [weight, bias], [mean, scale])
    if seen is None:
        return None
    dense, view = seen
    y = torch.empty_like(dense)
    with _device(x):
        launch.apply(
            dense, memory.plain(mean), memory.plain(scale), *memory.parameters(weight, bias),
            memory.along(dense, residual), y, view, eps, activation,
        )  # fmt: skip
    return y if dense is x else layout.as_of(x, y)


@_kernels_first
def normalize_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    pattern: str,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
    """Gradients of `normalize` by x, weight, bias and residual, see `eager`."""
    mean, _, rstd = statistics
    return _gradients(
        launch.backward, dy, x, weight, bias, residual, mean, rstd, pattern, center, activation
    )


@_kernels_first
def apply_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
    """Gradients of `apply` by x, weight, bias and residual; the statistics are constants."""
    return _gradients(
        launch.apply_backward, dy, x, weight, bias, residual, mean, var, pattern, eps, activation
    )


def _gradients(
    launched: Callable[..., tuple[Tensor, Tensor]],
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    scale: Tensor,
    pattern: str,
    option: bool | float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
    seen = _see(x, pattern, [dy, residual], [weight, bias], [mean, scale])
    if seen is None:
        return None
    dense, view = seen
    # without an activation the residual has no part in any gradient, and dy is its own
    residual = memory.along(dense, residual) if activation != "none" else None
    dx = torch.empty_like(dense)
    dresidual = None if residual is None else torch.empty_like(dense)
    with _device(x):
        dweight, dbias = launched(
            memory.along(dense, dy), dense, *memory.parameters(weight, bias), residual,
            memory.plain(mean), memory.plain(scale), (dx, dresidual), view, option, activation,
        )  # fmt: skip
    if dense is not x:
        dx = layout.as_of(x, dx)
        dresidual = None if dresidual is None else layout.as_of(x, dresidual)
    return dx, dweight, dbias, dresidual


def _see(
    x: Tensor,
    pattern: str,
    like: Sequence[Tensor | None] = (),
    per_channel: Sequence[Tensor | None] = (),
    per_group: Sequence[Tensor] = (),
) -> tuple[Tensor, View] | None:
    """x in dense memory and how kernels address it; None where they do not cover these tensors.

    Tensors that do not fit go to `eager` too, which refuses them.
    """
    if not (x.is_cuda or INTERPRETED) or x.dtype not in memory.TYPES or x.numel() == 0:
        return None
    others = [t for t in (*like, *per_channel, *per_group) if t is not None]
    if any(t.device != x.device or not t.is_floating_point() for t in others):
        return None
    form, last = nearest(pattern, x.shape, layout.lies_channels_last(x))
    if form is None:
        warn_slow(f'as no GPU kernel takes "{pattern}"')
        return None
    if form.count == 1:
        return None
    view = schedule.view(form, last)
    fits = (
        all(t is None or t.shape == x.shape for t in like)
        and all(t is None or t.shape == x.shape[1:2] for t in per_channel)
        and all(t.numel() == view.num_groups for t in per_group)
    )
    return (layout.dense(x, last), view) if fits else None


def _empty(x: Tensor, pattern: str, number: int) -> Tensor:
    """So many statistics, along the first axis."""
    shape = patterns.geometry(pattern, x.shape).statistics
    return torch.empty((number, *shape), dtype=torch.float32, device=x.device)


def _device(x: Tensor) -> AbstractContextManager:
    """Kernels start on the current device, so make it that of x."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
