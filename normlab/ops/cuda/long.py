"""Kernels of one program per group that reads its group twice, tile after tile.

Layout: as in `whole`; tiles of one group, [1, CH channels, P positions]. Good for groups too large
to keep on the chip, up to 256 KB each, where there are enough of them to fill the device: what is
read again is still in the level 2 cache. Sums are float32 per channel, see `regions`; channels are
merged as Chan et al. do.
"""

import triton
from triton import language as tl

from normlab.ops.cuda.regions import moments_of, slope_sums, write_dx, write_y
from normlab.ops.cuda.tile import SIZES, STATISTICS, multiple, parameter, total


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def long_forward(
    x, weight, bias, residual, y, mean, var, rstd, eps,
    samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    CENTER: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """y and statistics; only mean and var where y is None."""
    if CHANNELS_LAST:
        channels = multiple(channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    num_channels = groups * channels
    q = tl.program_id(0).to(tl.int64)
    start = q // groups * (values * num_channels)
    channel0 = q % groups * channels
    k = tl.arange(0, CH).to(tl.int64)[None, :]

    zero = tl.full([1], 0.0, tl.float32)
    m = zero
    m2 = zero
    for k0 in range(0, channels, CH):
        there = k0 + k < channels
        mean_k, m2_k = moments_of(
            x, start, channel0 + k0 + k, there, 0, values, num_channels, positions, values,
            CENTER, CHANNELS_LAST, SPANS, UNIT, CH, P,
        )  # fmt: skip
        m2 += total(tl.where(there, m2_k, 0.0), 1)
        if CENTER:
            # relative to the first of them, so that equal means stay exactly that
            base = total(tl.where(k == 0, mean_k, 0.0), 1)
            inside = tl.minimum(channels - k0, CH).to(tl.float32)
            d = tl.where(there, mean_k - base[:, None], 0.0)
            step = total(d, 1) / inside
            d = tl.where(there, d - step[:, None], 0.0)
            apart = base + step - m
            seen = tl.cast(k0, tl.float32)
            m2 += values.to(tl.float32) * (
                total(d * d, 1) + apart * apart * (seen * inside / (seen + inside))
            )
            m += apart * (inside / (seen + inside))
    v = m2 / (channels * values).to(tl.float32)
    at = q + tl.arange(0, 1)
    tl.store(mean + at, m)
    tl.store(var + at, v)
    if y is not None:
        s = 1.0 / tl.sqrt_rn(v + eps)
        tl.store(rstd + at, s)
        for k0 in range(0, channels, CH):
            write_y(
                x, weight, bias, residual, y,
                start, channel0 + k0 + k, k0 + k < channels,
                m[:, None, None], s[:, None, None], 0, values,
                num_channels, positions, values, ACTIVATION, CHANNELS_LAST, SPANS, UNIT, P,
            )  # fmt: skip


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def long_backward(
    dy, x, weight, bias, residual, mean, rstd, dx, dresidual, dweight, dbias,
    samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    CENTER: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """dx, dresidual, and partial sums of dweight and dbias: (slices, C)."""
    if CHANNELS_LAST:
        channels = multiple(channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    num_channels = groups * channels
    q = tl.program_id(0).to(tl.int64)
    start = q // groups * (values * num_channels)
    channel0 = q % groups * channels
    at_sums = q // groups * num_channels
    k = tl.arange(0, CH).to(tl.int64)[None, :]
    m = tl.load(mean + q)
    s = tl.load(rstd + q)

    mean_g = tl.full([1], 0.0, tl.float32)
    dot = tl.full([1], 0.0, tl.float32)
    for k0 in range(0, channels, CH):
        channel = channel0 + k0 + k
        there = k0 + k < channels
        dw, db = slope_sums(
            dy, x, weight, bias, residual, None, None,
            start, channel, there, m, s, 0, values,
            num_channels, positions, values, ACTIVATION, CHANNELS_LAST, SPANS, UNIT, CH, P,
        )  # fmt: skip
        tl.store(dweight + at_sums + channel, dw, mask=there)
        tl.store(dbias + at_sums + channel, db, mask=there)
        w = parameter(weight, channel, there, 1.0)
        dot += total(total(dw[:, :, None] * w, 2), 1)
        if CENTER:
            mean_g += total(total(db[:, :, None] * w, 2), 1)
    count = (channels * values).to(tl.float32)
    for k0 in range(0, channels, CH):
        write_dx(
            dy, x, weight, bias, residual, dx, dresidual,
            start, channel0 + k0 + k, k0 + k < channels,
            m, s, (mean_g / count)[:, None, None], (dot / count)[:, None, None], 0, values,
            num_channels, positions, values, ACTIVATION, CHANNELS_LAST, SPANS, UNIT, P,
        )  # fmt: skip
