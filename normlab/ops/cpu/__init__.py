"""The operators on the CPU: which kernel, on what memory, on how many threads.

    planes_*  channels first: a statistic's elements lie in runs; items  their parts
    rows_*    channels last: rows of all channels are read in order; chunks  their parts
    lines_*   statistics along the last axis
    running   moves running statistics
    sums, activations, simd, pointers, parallel   what kernels are made of
    jit       kernels to machine code, kept on disk;  team  runs them on torch's threads
    plan      how work is cut;  words  how kernels are called;  memory  of outputs

The functions are those of `eager`, which computes what has no kernel: patterns that are not
`canonical`, empty tensors, one value per statistic. Elements are float32, or float64 for float64,
sums across blocks and statistics float64. Strided input is copied once.
"""

import array
import functools
import struct
from typing import NamedTuple

import torch
from torch import Tensor

from normlab.ops import eager, layout
from normlab.ops.canonical import Form, nearest
from normlab.ops.cpu import memory, plan, team
from normlab.ops.cpu import words as at
from normlab.ops.cpu.jit import Entry, entry
from normlab.ops.device import warn_slow
from normlab.pattern import geometry, show

__all__ = [
    "apply",
    "apply_backward",
    "moments",
    "normalize",
    "normalize_backward",
    "rebuild",
    "track",
]

ELEMENTS = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
SMALL = 32768  # elements; fewer are not worth a team
STREAMED = 6 << 20  # bytes; larger outputs are written around the caches
_EMPTY = array.array("q", bytes(8 * at.NUM_WORDS))


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    pattern: str,
    eps: float,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """y, and as one tensor mean, var and rstd = 1/sqrt(var + eps)."""
    task = _task("forward", x, pattern, activation, residual)
    if task is None:
        return eager.normalize(x, weight, bias, residual, pattern, eps, center, activation)
    statistics = torch.empty(task.statistics, dtype=torch.float64)
    block = task.block[:]
    block[at.EPS] = _bits(eps)
    block[at.CENTER] = center
    return _forward(task, block, x, weight, bias, residual, statistics), statistics


def moments(x: Tensor, pattern: str, center: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance; the kernel's y is written in vain, which costs less than torch."""
    _, (mean, var, _) = normalize(x, None, None, None, pattern, 1.0, center, "none")
    return mean.clone(), var.clone()


def rebuild(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    pattern: str,
    activation: str,
) -> Tensor:
    """y of `normalize` once more, bit for bit, from the statistics it returned."""
    task = _task("forward", x, pattern, activation, residual)
    if task is None:
        return eager.rebuild(x, weight, bias, residual, statistics, pattern, activation)
    block = task.block[:]
    block[at.GIVEN] = True
    return _forward(task, block, x, weight, bias, residual, _given(task, statistics))


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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `normalize` by x, weight, bias and residual, see `eager`."""
    task = _task("backward", x, pattern, activation, residual)
    if task is None:
        return eager.normalize_backward(
            dy, x, weight, bias, residual, statistics, pattern, center, activation
        )
    block = task.block[:]
    block[at.CENTER] = center
    statistics = _given(task, statistics)
    return _backward(task, block, dy, x, weight, bias, residual, statistics)


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
) -> Tensor:
    """y under statistics that are given."""
    statistics = eager.given(x, mean, var, eps)
    return rebuild(x, weight, bias, residual, statistics, pattern, activation)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `apply` by x, weight, bias and residual; the statistics are constants."""
    task = _task("backward", x, pattern, activation, residual)
    if task is None:
        return eager.apply_backward(
            dy, x, mean, var, weight, bias, residual, pattern, eps, activation
        )
    block = task.block[:]
    block[at.GIVEN] = True
    statistics = _given(task, eager.given(x, mean, var, eps))
    return _backward(task, block, dy, x, weight, bias, residual, statistics)


def track(
    running_mean: Tensor, running_var: Tensor, statistics: Tensor, momentum: float, unbiased: float
) -> None:
    """Move running statistics towards those of a batch, in place."""
    element = ELEMENTS.get(running_mean.dtype)
    kernel = _kernel("running", element) if element in ("float32", "float64") else None
    if kernel is None or not (
        running_mean.dtype is running_var.dtype
        and running_mean.shape == running_var.shape
        and running_var.is_cpu
        and statistics.is_cpu
        and running_mean.is_contiguous()
        and running_var.is_contiguous()
        and statistics.is_contiguous()
        and statistics.shape == (3, running_mean.numel())
        and statistics.dtype is torch.float64
    ):
        eager.track(running_mean, running_var, statistics, momentum, unbiased)
        return
    block = _EMPTY[:]
    block[at.RUNNING_MEAN], block[at.RUNNING_VAR] = running_mean.data_ptr(), running_var.data_ptr()
    block[at.STATISTICS], block[at.CHANNELS] = statistics.data_ptr(), running_mean.numel()
    block[at.MOMENTUM], block[at.UNBIASED] = _bits(momentum), _bits(unbiased)
    team.run(kernel, block, 1)
    torch.autograd.graph.increment_version((running_mean, running_var))


class Task(NamedTuple):
    """One direction of a norm of one shape and type."""

    kernel: Entry
    family: str
    direction: str
    form: Form
    channels_last: bool
    strides: tuple[int, ...] | None  # of x, if its memory is dense as the kernel reads it
    statistics: tuple[int, ...]  # their shape
    compute_dtype: torch.dtype
    block: array.array  # words that are the same in every call
    scratch: int | None  # float64 numbers it needs; None if by the number of its threads
    keeps: bool  # dz stays between the passes of the backward pass


def _task(
    direction: str, x: Tensor, pattern: str, activation: str, residual: Tensor | None
) -> Task | None:
    """How x is normalized; None if by plain torch."""
    has_residual = residual is not None
    return _planned(direction, pattern, x.shape, x.stride(), x.dtype, activation, has_residual)


@functools.lru_cache(maxsize=4096)
def _planned(
    direction: str,
    pattern: str,
    shape: torch.Size,
    strides: tuple[int, ...],
    dtype: torch.dtype,
    activation: str,
    has_residual: bool,
) -> Task | None:
    if dtype not in ELEMENTS or 0 in shape:
        return None
    like = torch.empty_strided(shape, strides, device="meta")
    form, channels_last = nearest(pattern, shape, layout.lies_channels_last(like))
    if form is None:
        warn_slow(f'as no kernel takes "{pattern}"')
        return None
    if form.count == 1:
        return None
    family = "rows" if channels_last else "planes"
    if form.positions == 1:
        family = "lines" if form.samples == 1 else "rows"
    kernel = _kernel(f"{family}_{direction}", ELEMENTS[dtype], activation, has_residual)
    if kernel is None:
        return None
    numel = form.slices * form.groups * form.count
    block = _EMPTY[:]
    block[at.SLICES], block[at.SAMPLES], block[at.GROUPS] = form.slices, form.samples, form.groups
    block[at.CHANNELS], block[at.POSITIONS] = form.channels, form.positions
    block[at.WIDTH] = plan.row_width(shape[1])
    keeps = plan.keeps_dz(activation, has_residual)
    # what was just kept in dx is in the cache, and is best overwritten there
    rewritten = direction == "backward" and keeps and not has_residual
    if numel * dtype.itemsize >= STREAMED and not rewritten:
        block[at.STREAM] = plan.is_streamed(family, form, dtype.itemsize)
    return Task(
        kernel, family, direction, form, channels_last,
        strides if layout.is_dense(like, channels_last) else None,
        (3, *geometry(pattern, shape).statistics),
        torch.float64 if dtype == torch.float64 else torch.float32,
        block, None if numel >= SMALL else plan.scratch(family, direction, form, 1), keeps,
    )  # fmt: skip


@functools.cache
def _kernel(*options: str | bool) -> Entry | None:
    try:
        return entry(*options)
    except Exception as error:  # whatever hinders compiling, plain torch can go on
        warn_slow(f"as its kernels cannot be compiled: {type(error).__name__}: {error}")
        return None


def _forward(
    task: Task,
    block: array.array,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
) -> Tensor:
    dense = x if task.strides else layout.dense(x, task.channels_last)
    y = memory.empty_like(dense)
    block[at.Y] = y.data_ptr()
    _launch(task, block, dense, weight, bias, residual, statistics)
    return y if dense is x else layout.as_of(x, y)


def _backward(
    task: Task,
    block: array.array,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    dense = x if task.strides else layout.dense(x, task.channels_last)
    dx = memory.empty_like(dense)
    dresidual = memory.empty_like(dense) if residual is not None and task.keeps else None
    dy = _fitting(task, dense, dy, "dy")
    dweight = torch.empty(x.shape[1], dtype=task.compute_dtype)
    dbias = torch.empty(x.shape[1], dtype=task.compute_dtype)
    block[at.DY], block[at.Y] = dy.data_ptr(), dx.data_ptr()
    block[at.DZ] = (dx if dresidual is None else dresidual).data_ptr()
    block[at.DWEIGHT], block[at.DBIAS] = dweight.data_ptr(), dbias.data_ptr()
    _launch(task, block, dense, weight, bias, residual, statistics)
    if dense is not x:
        dx = layout.as_of(x, dx)
        dresidual = None if dresidual is None else layout.as_of(x, dresidual)
    return dx, dweight, dbias, dresidual


def _launch(
    task: Task,
    block: array.array,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
) -> None:
    """Fill in what both directions need, and run."""
    if task.family == "lines":  # where weight and bias are read with every value
        weight = torch.ones(x.shape[1]) if weight is None else weight
        bias = torch.zeros(x.shape[1]) if bias is None else bias
    if weight is not None:
        weight = _per_channel(task, x, weight, "weight")
        block[at.WEIGHT] = weight.data_ptr()
    if bias is not None:
        bias = _per_channel(task, x, bias, "bias")
        block[at.BIAS] = bias.data_ptr()
    if residual is not None:
        residual = _fitting(task, x, residual, "residual")
        block[at.RESIDUAL] = residual.data_ptr()
    block[at.X], block[at.STATISTICS] = x.data_ptr(), statistics.data_ptr()
    if task.scratch is not None:
        scratch = memory.scratch(task.scratch)
        block[at.SCRATCH] = scratch.data_ptr()
        team.run(task.kernel, block, 1)
        return
    num_threads = team.num_threads()
    block[at.TOGETHER] = plan.together(task.family, task.form, num_threads)
    scratch = memory.scratch(plan.scratch(task.family, task.direction, task.form, num_threads))
    block[at.SCRATCH] = scratch.data_ptr()
    team.run(task.kernel, block, num_threads)


def _bits(value: float) -> int:
    """Those of a float64, as an integer."""
    return _INTEGER.unpack(_REAL.pack(value))[0]


_INTEGER, _REAL = struct.Struct("q"), struct.Struct("d")


def _given(task: Task, statistics: Tensor) -> Tensor:
    """Statistics a caller brings, as kernels read them."""
    if (
        statistics.shape != task.statistics
        or statistics.dtype is not torch.float64
        or not statistics.is_cpu
    ):
        raise RuntimeError(
            f"expected statistics {show(task.statistics)} in float64 on cpu, "
            f"got {show(statistics.shape)} in {statistics.dtype} on {statistics.device}"
        )
    return statistics.contiguous()


def _fitting(task: Task, x: Tensor, t: Tensor, name: str) -> Tensor:
    """A tensor that goes along with x, in its type and layout."""
    if t.shape != x.shape or not t.is_cpu:
        raise RuntimeError(
            f"expected {name} like x, {show(x.shape)} on cpu, got {show(t.shape)} on {t.device}"
        )
    t = t if t.dtype is x.dtype else t.to(x.dtype)
    return t if t.stride() == task.strides else layout.dense(t, task.channels_last)


def _per_channel(task: Task, x: Tensor, t: Tensor, name: str) -> Tensor:
    """A parameter in the type elements are computed in."""
    if t.numel() != x.shape[1] or not t.is_cpu:
        raise RuntimeError(
            f"expected {name} of {x.shape[1]} values on cpu, got {show(t.shape)} on {t.device}"
        )
    if t.dtype is task.compute_dtype and t.is_contiguous():
        return t
    return t.detach().to(task.compute_dtype).contiguous()
