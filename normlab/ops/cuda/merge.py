"""Kernels that merge partial results: per chunk and channel, float32, (slices, chunks, C).

Always in the same order, without atomics, so that results are the same in every run.
"""

import triton
from triton import language as tl

from normlab.ops.cuda.tile import SIZES, STATISTICS, read, total


@triton.jit
def merged_moments(
    part_mean, part_m2, q, there, groups, channels, chunks, length, values,
    CENTER: tl.constexpr, Q: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Mean and variance of the groups q, [Q], out of E partial results at a time."""
    num_channels = groups * channels
    at_first = q // groups * chunks * num_channels + q % groups * channels
    lane = tl.arange(0, E).to(tl.int64)[None, :]
    count = (channels * values).to(tl.float32)
    m = tl.full([Q], 0.0, tl.float32)
    if CENTER:
        # relative to the first of them, so that equal means stay exactly that
        first = read(part_mean, at_first, there)
        sums = tl.full([Q], 0.0, tl.float32)
        for e0 in range(0, chunks * channels, E):
            chunk = (e0 + lane) // channels
            at = at_first[:, None] + chunk * num_channels + (e0 + lane) % channels
            mask = there[:, None] & (chunk < chunks)
            size = tl.minimum(values - chunk * length, length).to(tl.float32)
            d = read(part_mean, at, mask) - first[:, None]
            sums += total(tl.where(mask, size * d, 0.0), 1)
        m = first + sums / count
    m2 = tl.full([Q], 0.0, tl.float32)
    for e0 in range(0, chunks * channels, E):
        chunk = (e0 + lane) // channels
        at = at_first[:, None] + chunk * num_channels + (e0 + lane) % channels
        mask = there[:, None] & (chunk < chunks)
        inside = read(part_m2, at, mask)
        if CENTER:
            size = tl.minimum(values - chunk * length, length).to(tl.float32)
            d = read(part_mean, at, mask) - m[:, None]
            inside += size * d * d
        m2 += total(tl.where(mask, inside, 0.0), 1)
    return m, m2 / count


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def merge_moments(
    part_mean, part_m2, mean, var, rstd, eps,
    slices: tl.int64, samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    chunks: tl.int64, steps: tl.int64,
    CENTER: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Statistics of Q groups; rstd only where it is not None."""
    q = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q)
    there = q < slices * groups
    m, v = merged_moments(
        part_mean, part_m2, q, there, groups, channels, chunks, steps * P, samples * positions,
        CENTER, Q, E,
    )  # fmt: skip
    tl.store(mean + q, m, mask=there)
    tl.store(var + q, v, mask=there)
    if rstd is not None:
        tl.store(rstd + q, 1.0 / tl.sqrt_rn(v + eps), mask=there)


@triton.jit
def merged_rows(part, out, num_channels, rows, block, R: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums over the rows of (rows, C), for one block of columns."""
    column = block * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)[None, :]
    lane = tl.arange(0, R).to(tl.int64)[:, None]
    sums = tl.full([R, COLUMNS], 0.0, tl.float32)
    for r0 in range(0, rows, R):
        mask = (r0 + lane < rows) & (column < num_channels)
        sums += read(part, (r0 + lane) * num_channels + column, mask)
    column = block * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
    tl.store(out + column, total(sums, 0), mask=column < num_channels)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def merge_rows(
    part_dweight, part_dbias, dweight, dbias, num_channels: tl.int64, rows: tl.int64,
    R: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dweight and dbias out of partial sums (rows, C)."""
    block = tl.program_id(0).to(tl.int64)
    merged_rows(part_dweight, dweight, num_channels, rows, block, R, COLUMNS)
    merged_rows(part_dbias, dbias, num_channels, rows, block, R, COLUMNS)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def merge_gradients(
    part_dweight, part_dbias, weight, mean_g, dot, dweight, dbias,
    slices: tl.int64, samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    chunks: tl.int64,
    CENTER: tl.constexpr, Q: tl.constexpr, E: tl.constexpr,
    R: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """First programs: means of g and g * xhat of Q groups each; the others: dweight and dbias."""
    num_channels = groups * channels
    program = tl.program_id(0).to(tl.int64)
    merging = (slices * groups + Q - 1) // Q
    if program < merging:
        q = program * Q + tl.arange(0, Q)
        there = q < slices * groups
        at_first = q // groups * chunks * num_channels
        lane = tl.arange(0, E).to(tl.int64)[None, :]
        sum_g = tl.full([Q], 0.0, tl.float32)
        sum_g_xhat = tl.full([Q], 0.0, tl.float32)
        for e0 in range(0, chunks * channels, E):
            chunk = (e0 + lane) // channels
            mask = there[:, None] & (chunk < chunks)
            channel = (q % groups * channels)[:, None] + (e0 + lane) % channels
            at = at_first[:, None] + chunk * num_channels + channel
            dw = read(part_dweight, at, mask)
            db = read(part_dbias, at, mask)
            if weight is not None:
                w = read(weight, channel, mask)
                dw = tl.where(mask, dw * w, 0.0)
                db = tl.where(mask, db * w, 0.0)
            sum_g_xhat += total(dw, 1)
            if CENTER:
                sum_g += total(db, 1)
        count = (channels * samples * positions).to(tl.float32)
        tl.store(mean_g + q, sum_g / count, mask=there)
        tl.store(dot + q, sum_g_xhat / count, mask=there)
    else:
        block = program - merging
        merged_rows(part_dweight, dweight, num_channels, slices * chunks, block, R, COLUMNS)
        merged_rows(part_dbias, dbias, num_channels, slices * chunks, block, R, COLUMNS)
