"""Kernels that keep whole groups on the chip: x is read once, and dy.

Layout: any slice of (samples, channels, positions), or (positions, channels) where channels are
last; one tile [Q groups, CH channels, P positions] holds Q whole groups. Good for up to 32K values
a tile forward, 16K backward: group, layer and instance norm of most networks, rows of "n c -> n",
batch norm of small maps. Sums are float32 in registers: mean of values shifted by the group's
first, then squares of what is centred. Above 1e15 the squares leave float32's range.
"""

import triton
from triton import language as tl

from normlab.ops.cuda.activations import activate, slope
from normlab.ops.cuda.tile import (
    SIZES,
    STATISTICS,
    multiple,
    offset_in_slice,
    parameter,
    preactivation,
    read,
    total,
)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def whole_forward(
    x, weight, bias, residual, y, mean, var, rstd, eps,
    slices: tl.int64, samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    CENTER: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    ONE_GROUP: tl.constexpr, ONE_CHANNEL: tl.constexpr,
    Q: tl.constexpr, CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """y and statistics; only mean and var where y is None.

    ONE_GROUP: per slice. ONE_CHANNEL: per group, and channels are last; groups are then what memory
    has next to each other.
    """
    if ONE_CHANNEL:
        groups = multiple(groups, UNIT)
    elif CHANNELS_LAST:
        channels = multiple(channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    q = tl.program_id(0).to(tl.int64) * Q + tl.arange(0, Q).to(tl.int64)
    k = tl.arange(0, CH).to(tl.int64)[None, :]
    begin = tl.cast(0, tl.int64)
    lane = tl.arange(0, P)[None, None, :]
    there = q < slices * groups
    channel0 = q % groups if ONE_CHANNEL else q % groups * channels
    channel = channel0[:, None] + k
    channel_mask = there[:, None] & (k < channels)
    mask = channel_mask[:, :, None] & (lane < values)
    num_channels = groups * channels
    start = q // groups * (values * num_channels)
    offset = start[:, None, None] + offset_in_slice(
        channel[:, :, None], begin, lane, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
    )

    count = (channels * values).to(tl.float32)
    d = read(x, offset, mask)
    if CENTER:
        at_first = start + channel0 * (1 if CHANNELS_LAST else positions)
        first = read(x, at_first, there)
        shift = total(total(tl.where(mask, d - first[:, None, None], 0.0), 2), 1) / count
        # as y is computed wherever x is read again: from the mean as it is stored
        m = first + shift
        d = tl.where(mask, d - m[:, None, None], 0.0)
        tl.store(mean + q, m, mask=there)
    else:
        tl.store(mean + q, tl.full([Q], 0.0, tl.float32), mask=there)
    v = total(total(d * d, 2), 1) / count
    tl.store(var + q, v, mask=there)
    if y is not None:
        s = 1.0 / tl.sqrt_rn(v + eps)
        tl.store(rstd + q, s, mask=there)
        if ONE_GROUP:  # read once for all groups of the tile
            channel = k
            channel_mask = k < channels
        w = parameter(weight, channel, channel_mask, 1.0)
        b = parameter(bias, channel, channel_mask, 0.0)
        z = preactivation(d * s[:, None, None], w, b, residual, offset, mask)
        tl.store(y + offset, activate(z, ACTIVATION), mask=mask)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STATISTICS)
def whole_backward(
    dy, x, weight, bias, residual, mean, rstd, dx, dresidual, dweight, dbias,
    slices: tl.int64, samples: tl.int64, groups: tl.int64, channels: tl.int64, positions: tl.int64,
    steps,
    CENTER: tl.constexpr, ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    ONE_GROUP: tl.constexpr, ONE_CHANNEL: tl.constexpr,
    Q: tl.constexpr, CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """dx, dresidual, and partial sums of dweight and dbias: (slices, C).

    ONE_GROUP: a program takes `steps` tiles one after the other, and partial sums are
    (programs, C).
    """
    if ONE_CHANNEL:
        groups = multiple(groups, UNIT)
    elif CHANNELS_LAST:
        channels = multiple(channels, UNIT)
    else:
        positions = multiple(positions, UNIT)
    values = samples * positions
    num_channels = groups * channels
    count = (channels * values).to(tl.float32)
    program = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, CH).to(tl.int64)[None, :]
    begin = tl.cast(0, tl.int64)
    lane = tl.arange(0, P)[None, None, :]
    sum_dz_xhat = tl.full([Q, CH], 0.0, tl.float32)
    sum_dz = tl.full([Q, CH], 0.0, tl.float32)
    for step in range(steps):
        q = (program * steps + step) * Q + tl.arange(0, Q).to(tl.int64)
        there = q < slices * groups
        channel0 = q % groups if ONE_CHANNEL else q % groups * channels
        channel = channel0[:, None] + k
        channel_mask = there[:, None] & (k < channels)
        mask = channel_mask[:, :, None] & (lane < values)
        start = q // groups * (values * num_channels)
        offset = start[:, None, None] + offset_in_slice(
            channel[:, :, None], begin, lane, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
        )
        at_weight = channel
        weight_mask = channel_mask
        if ONE_GROUP:
            at_weight = k
            weight_mask = k < channels

        w = parameter(weight, at_weight, weight_mask, 1.0)
        s = read(rstd, q, there)[:, None, None]
        m = read(mean, q, there)[:, None, None]
        xhat = tl.where(mask, (read(x, offset, mask) - m) * s, 0.0)
        g = read(dy, offset, mask)
        if ACTIVATION != "none":
            b = parameter(bias, at_weight, weight_mask, 0.0)
            z = preactivation(xhat, w, b, residual, offset, mask)
            g = tl.where(mask, g * slope(z, ACTIVATION), 0.0)
            if dresidual is not None:
                tl.store(dresidual + offset, g, mask=mask)
        dw = total(g * xhat, 2)
        db = total(g, 2)
        if ONE_GROUP:
            sum_dz_xhat += dw
            sum_dz += db
        else:
            at_sums = (q // groups * num_channels)[:, None] + channel
            tl.store(dweight + at_sums, dw, mask=channel_mask)
            tl.store(dbias + at_sums, db, mask=channel_mask)
        g = g * w
        if CENTER:
            g = g - (total(total(db[:, :, None] * w, 2), 1) / count)[:, None, None]
        dot = (total(total(dw[:, :, None] * w, 2), 1) / count)[:, None, None]
        tl.store(dx + offset, (g - xhat * dot) * s, mask=mask)
    if ONE_GROUP:
        k = tl.arange(0, CH).to(tl.int64)
        at_sums = program * channels + k
        tl.store(dweight + at_sums, total(sum_dz_xhat, 0), mask=k < channels)
        tl.store(dbias + at_sums, total(sum_dz, 0), mask=k < channels)
