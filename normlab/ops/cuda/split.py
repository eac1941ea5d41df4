"""Kernels that split groups among programs, whose partial results `merge` puts together.

Layout: as in `whole`; tiles [1, CH channels, P positions] of channels next to each other, whatever
their groups. A program takes CH channels of one slice at steps · P positions. Good for few or huge
groups, and for channels last: batch norm, group norm of large maps. Partial results are float32 per
channel, (slices, chunks, C).
"""

import triton
from triton import language as tl

from normlab.ops.cuda.merge import merged_moments
from normlab.ops.cuda.regions import moments_of, slope_sums, write_dx, write_y
from normlab.ops.cuda.tile import SIZES, STATISTICS, multiple, read, read_rstd


@triton.jit
def block_of(
    program, chunks, blocks, length, values,
    CHANNELS_LAST: tl.constexpr, CH: tl.constexpr,
):  # fmt: skip
    """Slice, chunk, first channel, first and last position of a program, in the order of memory."""
    if CHANNELS_LAST:
        block = program % blocks
        chunk = program // blocks % chunks
    else:
        chunk = program % chunks
        block = program // chunks % blocks
    b = program // (blocks * chunks)
    begin = chunk * length
    return b, chunk, block * CH, begin, tl.minimum(begin + length, values)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def chunk_moments(
    x, part_mean, part_m2,
    samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    chunks: tl.int64, blocks: tl.int64, steps: tl.int64,
    CENTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations per channel of a chunk."""
    num_channels = groups * channels
    if CHANNELS_LAST:
        num_channels = multiple(num_channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    b, chunk, channel0, begin, end = block_of(
        tl.program_id(0).to(tl.int64), chunks, blocks, steps * P, values,
        CHANNELS_LAST, CH,
    )  # fmt: skip
    channel = channel0 + tl.arange(0, CH).to(tl.int64)[None, :]
    there = channel < num_channels
    m, m2 = moments_of(
        x, b * values * num_channels, channel, there, begin, end, num_channels, positions, values,
        CENTER, CHANNELS_LAST, SPANS, UNIT, CH, P,
    )  # fmt: skip
    at = (b * chunks + chunk) * num_channels + channel
    tl.store(part_mean + at, m, mask=there)
    tl.store(part_m2 + at, m2, mask=there)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def split_apply(
    x, weight, bias, residual, y, mean, var, rstd, part_mean, part_m2, eps,
    samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    chunks: tl.int64, blocks: tl.int64, steps: tl.int64,
    part_chunks: tl.int64, part_steps: tl.int64,
    CENTER: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """y under statistics: mean and var, or rstd in its place where eps is None.

    Where there are partial moments, and all channels of a block are of one group, every program
    merges them itself, and the first of a group writes mean, var and rstd.
    """
    num_channels = groups * channels
    if CHANNELS_LAST:
        num_channels = multiple(num_channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    # from the end: what was read last is still in the cache
    program = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    b, chunk, channel0, begin, end = block_of(
        program, chunks, blocks, steps * P, values, CHANNELS_LAST, CH
    )
    channel = channel0 + tl.arange(0, CH).to(tl.int64)[None, :]
    there = channel < num_channels
    if part_mean is not None:
        q = b * groups + channel0 // channels + tl.arange(0, 1)
        m, v = merged_moments(
            part_mean, part_m2, q, q >= 0, groups, channels, part_chunks, part_steps * P, values,
            CENTER, 1, E,
        )  # fmt: skip
        s = 1.0 / tl.sqrt_rn(v + eps)
        is_first = (chunk == 0) & (channel0 % channels == 0) & (q >= 0)
        tl.store(mean + q, m, mask=is_first)
        tl.store(var + q, v, mask=is_first)
        tl.store(rstd + q, s, mask=is_first)
        m = m[:, None]
        s = s[:, None]
    else:
        at = b * groups + channel // channels
        m = read(mean, at, there)
        s = read_rstd(var, at, there, eps)
    write_y(
        x, weight, bias, residual, y, b * values * num_channels, channel, there,
        m[:, :, None], s[:, :, None], begin, end, num_channels, positions, values,
        ACTIVATION, CHANNELS_LAST, SPANS, UNIT, P,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def chunk_gradients(
    dy, x, weight, bias, residual, mean, scale, dx, dresidual, part_dweight, part_dbias, eps,
    samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    chunks: tl.int64, blocks: tl.int64, steps: tl.int64,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Sums of dz * xhat and of dz per channel of a chunk.

    `scale` is rstd, or var where eps is not None. dx, under constant statistics, and dresidual are
    written unless they are None.
    """
    num_channels = groups * channels
    if CHANNELS_LAST:
        num_channels = multiple(num_channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    b, chunk, channel0, begin, end = block_of(
        tl.program_id(0).to(tl.int64), chunks, blocks, steps * P, values,
        CHANNELS_LAST, CH,
    )  # fmt: skip
    channel = channel0 + tl.arange(0, CH).to(tl.int64)[None, :]
    there = channel < num_channels
    at = b * groups + channel // channels
    m = read(mean, at, there)[:, :, None]
    s = read_rstd(scale, at, there, eps)[:, :, None]
    dw, db = slope_sums(
        dy, x, weight, bias, residual, dx, dresidual, b * values * num_channels, channel, there,
        m, s, begin, end, num_channels, positions, values,
        ACTIVATION, CHANNELS_LAST, SPANS, UNIT, CH, P,
    )  # fmt: skip
    at = (b * chunks + chunk) * num_channels + channel
    tl.store(part_dweight + at, dw, mask=there)
    tl.store(part_dbias + at, db, mask=there)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def split_dx(
    dy, x, weight, bias, residual, mean, rstd, mean_g, dot, dx, dresidual,
    samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    chunks: tl.int64, blocks: tl.int64, steps: tl.int64,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """dx and dresidual out of the merged means."""
    num_channels = groups * channels
    if CHANNELS_LAST:
        num_channels = multiple(num_channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    program = tl.num_programs(0).to(tl.int64) - 1 - tl.program_id(0)
    b, _, channel0, begin, end = block_of(
        program, chunks, blocks, steps * P, values, CHANNELS_LAST, CH
    )
    channel = channel0 + tl.arange(0, CH).to(tl.int64)[None, :]
    there = channel < num_channels
    at = b * groups + channel // channels
    m = read(mean, at, there)[:, :, None]
    s = read(rstd, at, there)[:, :, None]
    mean_of_g = read(mean_g, at, there)[:, :, None]
    mean_of_g_xhat = read(dot, at, there)[:, :, None]
    write_dx(
        dy, x, weight, bias, residual, dx, dresidual, b * values * num_channels, channel, there,
        m, s, mean_of_g, mean_of_g_xhat, begin, end, num_channels, positions, values,
        ACTIVATION, CHANNELS_LAST, SPANS, UNIT, P,
    )  # fmt: skip
