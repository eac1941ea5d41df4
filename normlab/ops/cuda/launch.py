"""Launches: allocate what a schedule needs, then start its kernels.

x, dy and residual come dense and in one layout, weight and bias as (C,) or None.
"""

from typing import Any

import torch
from torch import Tensor

from normlab.ops.cuda import schedule
from normlab.ops.cuda.long import long_backward, long_forward
from normlab.ops.cuda.merge import merge_gradients, merge_moments, merge_rows
from normlab.ops.cuda.schedule import Split, Tile, View, cdiv
from normlab.ops.cuda.split import chunk_gradients, chunk_moments, split_apply, split_dx
from normlab.ops.cuda.whole import whole_backward, whole_forward

MERGE_WARPS = 8  # tiles of 4096 partial results


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    statistics: tuple[Tensor, Tensor, Tensor | None],
    view: View,
    eps: float,
    center: bool,
    activation: str,
) -> None:
    """Write mean, var, rstd and y; only mean and var where y is None."""
    itemsize = x.element_size()
    arguments = (x, weight, bias, residual, y, *statistics, eps)
    how = {"CENTER": center, "ACTIVATION": activation}
    if tile := schedule.whole(view, itemsize, backward=False):
        whole_forward[cdiv(view.num_groups, tile.groups),](
            *arguments, view.slices, *view.sizes,
            **how, **_shape(view, tile), **_whole(view, tile),
        )  # fmt: skip
    elif tile := schedule.long(view, itemsize, backward=False):
        long_forward[view.num_groups,](*arguments, *view.sizes, **how, **_shape(view, tile))
    else:
        _split_forward(*arguments[:5], statistics, view, eps, center, activation)


def _split_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor | None,
    statistics: tuple[Tensor, Tensor, Tensor | None],
    view: View,
    eps: float,
    center: bool,
    activation: str,
) -> None:
    seen = schedule.flat(view)
    cut = schedule.split(seen, x.element_size(), schedule.MANY)
    parts = _parts(x, view.slices * cut.chunks * seen.num_channels)
    chunk_moments[_programs(seen, cut),](
        x, *parts, *seen.sizes, cut.chunks, cut.blocks, cut.steps,
        CENTER=center, **_shape(seen, cut.tile),
    )  # fmt: skip
    applied = schedule.split(view, x.element_size(), 4 * schedule.MANY)
    entries = schedule.merged_at_once(view, cut, applied) if seen == view and y is not None else 0
    if not entries:
        groups, lanes = schedule.merge(seen, cut.chunks)
        merge_moments[cdiv(view.num_groups, groups),](
            *parts, *statistics, eps, view.slices, *seen.sizes, cut.chunks, cut.steps,
            CENTER=center, P=cut.tile.positions, Q=groups, E=lanes, num_warps=MERGE_WARPS,
        )  # fmt: skip
    if y is not None:
        mean, var, rstd = statistics
        split_apply[_programs(view, applied),](
            x, weight, bias, residual, y, mean, var, rstd, *(parts if entries else (None, None)),
            eps, *view.sizes, applied.chunks, applied.blocks, applied.steps,
            cut.chunks, cut.steps,
            CENTER=center, ACTIVATION=activation, E=entries, **_shape(view, applied.tile),
        )  # fmt: skip


def apply(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    view: View,
    eps: float | None,
    activation: str,
) -> None:
    """Write y; `scale` is var, or rstd where eps is None."""
    cut = schedule.split(view, x.element_size(), 4 * schedule.MANY)
    split_apply[_programs(view, cut),](
        x, weight, bias, residual, y, mean, scale, None, None, None, eps,
        *view.sizes, cut.chunks, cut.blocks, cut.steps, 0, 0,
        CENTER=True, ACTIVATION=activation, E=0, **_shape(view, cut.tile),
    )  # fmt: skip


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    outputs: tuple[Tensor, Tensor | None],
    view: View,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Write dx and dresidual; returns dweight and dbias."""
    itemsize = x.element_size()
    arguments = (dy, x, weight, bias, residual, mean, rstd, *outputs)
    how = {"CENTER": center, "ACTIVATION": activation}
    if tile := schedule.whole(view, itemsize, backward=True):
        tiles = cdiv(view.num_groups, tile.groups)
        steps = cdiv(tiles, schedule.ENOUGH) if view.groups == 1 else 1
        programs = cdiv(tiles, steps)
        rows = programs if view.groups == 1 else view.slices
        parts = _parts(x, rows * view.num_channels)
        whole_backward[programs,](
            *arguments, *parts, view.slices, *view.sizes, steps,
            **how, **_shape(view, tile), **_whole(view, tile),
        )  # fmt: skip
        return _merged(parts, rows, view)
    if tile := schedule.long(view, itemsize, backward=True):
        parts = _parts(x, view.slices * view.num_channels)
        long_backward[view.num_groups,](
            *arguments, *parts, *view.sizes, **how, **_shape(view, tile)
        )  # fmt: skip
        return _merged(parts, view.slices, view)
    return _split_backward(*arguments[:7], outputs, view, center, activation)


def _split_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    outputs: tuple[Tensor, Tensor | None],
    view: View,
    center: bool,
    activation: str,
) -> tuple[Tensor, Tensor]:
    arguments = (dy, x, weight, bias, residual, mean, rstd)
    cut, parts = _gradient_sums(arguments, (None, None), None, view, activation)
    groups, lanes = schedule.merge(view, cut.chunks)
    mean_g, dot = _parts(x, view.num_groups)
    rows, columns = _rows(view.slices * cut.chunks)
    sums = _parts(x, view.num_channels)
    merge_gradients[cdiv(view.num_groups, groups) + cdiv(view.num_channels, columns),](
        *parts, weight, mean_g, dot, *sums, view.slices, *view.sizes, cut.chunks,
        CENTER=center, Q=groups, E=lanes, R=rows, COLUMNS=columns, num_warps=MERGE_WARPS,
    )  # fmt: skip
    cut = schedule.split(view, x.element_size(), 4 * schedule.MANY)
    split_dx[_programs(view, cut),](
        *arguments, mean_g, dot, *outputs, *view.sizes, cut.chunks, cut.blocks, cut.steps,
        ACTIVATION=activation, **_shape(view, cut.tile),
    )  # fmt: skip
    return sums


def apply_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    outputs: tuple[Tensor, Tensor | None],
    view: View,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """Write dx and dresidual under constant statistics; returns dweight and dbias."""
    arguments = (dy, x, weight, bias, residual, mean, var)
    cut, parts = _gradient_sums(arguments, outputs, eps, view, activation)
    return _merged(parts, view.slices * cut.chunks, view)


def _gradient_sums(
    arguments: tuple[Any, ...],
    outputs: tuple[Tensor | None, Tensor | None],
    eps: float | None,
    view: View,
    activation: str,
) -> tuple[Split, tuple[Tensor, Tensor]]:
    x = arguments[1]
    cut = schedule.split(view, x.element_size(), schedule.MANY)
    parts = _parts(x, view.slices * cut.chunks * view.num_channels)
    chunk_gradients[_programs(view, cut),](
        *arguments, *outputs, *parts, eps, *view.sizes, cut.chunks, cut.blocks, cut.steps,
        ACTIVATION=activation, **_shape(view, cut.tile),
    )  # fmt: skip
    return cut, parts


def _merged(parts: tuple[Tensor, Tensor], rows: int, view: View) -> tuple[Tensor, Tensor]:
    """Sums over rows of (rows, C)."""
    if rows == 1:
        return parts
    sums = _parts(parts[0], view.num_channels)
    lanes, columns = _rows(rows)
    merge_rows[cdiv(view.num_channels, columns),](
        *parts, *sums, view.num_channels, rows,
        R=lanes, COLUMNS=columns, num_warps=MERGE_WARPS,
    )  # fmt: skip
    return sums


def _rows(rows: int) -> tuple[int, int]:
    """Rows and columns per tile where rows are merged: 4096 values, at least 32 bytes wide."""
    lanes = min(schedule.ceil2(rows), 512)
    return lanes, 4096 // lanes


def _parts(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    a, b = (torch.empty(size, dtype=torch.float32, device=x.device) for _ in range(2))
    return a, b


def _programs(view: View, cut: Split) -> int:
    return view.slices * cut.blocks * cut.chunks


def _whole(view: View, tile: Tile) -> dict[str, Any]:
    one_channel = view.channels == 1 and view.channels_last
    return {"ONE_GROUP": view.groups == 1, "ONE_CHANNEL": one_channel, "Q": tile.groups}


def _shape(view: View, tile: Tile) -> dict[str, Any]:
    """What kernels know of layout and tile when they are compiled."""
    return {
        "CHANNELS_LAST": view.channels_last,
        "SPANS": view.samples > 1,
        "UNIT": tile.unit,
        "CH": tile.channels,
        "P": tile.positions,
        "num_warps": tile.warps,
    }
