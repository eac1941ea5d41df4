"""Chunks: the parts of a channels-last slice that are summed by themselves, see `plan`."""

from normlab.ops.cpu import plan
from normlab.ops.cpu.parallel import jit
from normlab.ops.cpu.pointers import address_of, at, get, lanes_of, load_part, put, store_part
from normlab.ops.cpu.simd import fill

SEVERAL = 8  # rows for which what belongs to a channel is read once
rows_per_chunk = jit(plan.rows_per_chunk)
at_wide = at("float64")


@jit
def join(partials, chunks, width, rest, padded, all_channels, c0, c1):
    """Add the sums of all chunks, two for each of these channels, to those of the first."""
    total = at_wide(partials)
    for k in range(1, chunks):
        partial = at_wide(partials + k * 2 * padded * 8)
        end = rest if rest and k == chunks - 1 else width
        for row in range(0, end, all_channels):
            for j in range(row + c0, row + c1):
                put(total, j, get(total, j) + get(partial, j))
            for j in range(padded + row + c0, padded + row + c1):
                put(total, j, get(total, j) + get(partial, j))
    if chunks == 1 and rest:
        for row in range(rest, width, all_channels):
            for j in range(row + c0, row + c1):
                put(total, j, 0.0)
                put(total, padded + j, 0.0)


@jit
def spread(target, value, c0, c1, width, all_channels):
    """One value for channels c0 … c1, wherever they come in a row."""
    w = lanes_of(target)
    for base in range(0, width, all_channels):
        for j in range(base + c0, base + c1, w):
            store_part(target, j, fill(target, value), min(w, base + c1 - j))


@jit
def affine(weight, bias, scale, offset, rstd, low_mean, c0, c1, width, all_channels):
    """For channels c0 … c1 of a row: scale = rstd · weight, offset = bias - low_mean · scale."""
    w = lanes_of(scale)
    for base in range(0, width, all_channels):
        for j in range(c0, c1, w):
            n = min(w, c1 - j)
            a = b = fill(scale, 0.0)
            if address_of(weight, 0) == 0:
                a = fill(scale, rstd)
            else:
                a = fill(scale, rstd) * load_part(weight, j, n)
            if address_of(bias, 0) != 0:
                b = load_part(bias, j, n)
            store_part(scale, base + j, a, n)
            store_part(offset, base + j, b - fill(scale, low_mean) * a, n)
