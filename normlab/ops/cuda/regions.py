"""Loops over a region: some channels of one slice, at the positions from `begin` to `end`.

Tiles are [1, CH channels, P positions]; `begin` is a multiple of P. `channel` and `channel_mask`
are [1, CH], and so is what is returned. Sums are float32 per place of the tile, then over places.
"""

import triton
from triton import language as tl

from normlab.ops.cuda.activations import activate, slope
from normlab.ops.cuda.tile import offset_in_slice, parameter, preactivation, read, total


@triton.jit
def moments_of(
    x, start, channel, channel_mask, begin, end, num_channels, positions, values,
    CENTER: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations per channel; without CENTER 0 and the sum of squares.

    Values are shifted by the mean of the first tile, itself taken of values shifted by their
    first: constants deviate by exactly 0, and no digits cancel.
    """
    lane = tl.arange(0, P)[None, None, :]
    shift = tl.full([1, CH], 0.0, tl.float32)
    if CENTER:
        offset = offset_in_slice(
            channel[:, :, None], begin, lane, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
        )
        at_first = offset_in_slice(
            channel, begin, 0, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
        )
        mask = channel_mask[:, :, None] & (begin + lane < values)
        first = read(x, start + at_first, channel_mask)
        d = tl.where(mask, read(x, start + offset, mask) - first[:, :, None], 0.0)
        shift = first + total(d, 2) / tl.minimum(end - begin, P).to(tl.float32)
    sums = tl.full([1, CH, P], 0.0, tl.float32)
    squares = tl.full([1, CH, P], 0.0, tl.float32)
    for r0 in range(begin, end, P):
        offset = offset_in_slice(
            channel[:, :, None], r0, lane, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
        )
        mask = channel_mask[:, :, None] & (r0 + lane < values)
        d = tl.where(mask, read(x, start + offset, mask) - shift[:, :, None], 0.0)
        sums += d
        squares += d * d
    m2 = total(squares, 2)
    if CENTER:
        sum_d = total(sums, 2)
        step = sum_d / (end - begin).to(tl.float32)
        shift = shift + step
        m2 = m2 - sum_d * step
    return shift, m2


@triton.jit
def write_y(
    x, weight, bias, residual, y, start, channel, channel_mask, mean, rstd, begin, end,
    num_channels, positions, values,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """y of the region; mean and rstd spread over [1, CH, P]."""
    lane = tl.arange(0, P)[None, None, :]
    w = parameter(weight, channel, channel_mask, 1.0)
    b = parameter(bias, channel, channel_mask, 0.0)
    for r0 in range(begin, end, P):
        offset = start + offset_in_slice(
            channel[:, :, None], r0, lane, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
        )
        mask = channel_mask[:, :, None] & (r0 + lane < values)
        xhat = (read(x, offset, mask) - mean) * rstd
        z = preactivation(xhat, w, b, residual, offset, mask)
        tl.store(y + offset, activate(z, ACTIVATION), mask=mask)


@triton.jit
def slope_sums(
    dy, x, weight, bias, residual, dx, dresidual,
    start, channel, channel_mask, mean, rstd, begin, end,
    num_channels, positions, values,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
    CH: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Sums of dz * xhat and of dz per channel, dz being the gradient by z.

    Writes dx under constant statistics, and dresidual, unless they are None.
    """
    lane = tl.arange(0, P)[None, None, :]
    w = parameter(weight, channel, channel_mask, 1.0)
    b = parameter(bias, channel, channel_mask, 0.0)
    sum_dz_xhat = tl.full([1, CH, P], 0.0, tl.float32)
    sum_dz = tl.full([1, CH, P], 0.0, tl.float32)
    for r0 in range(begin, end, P):
        offset = start + offset_in_slice(
            channel[:, :, None], r0, lane, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
        )
        mask = channel_mask[:, :, None] & (r0 + lane < values)
        xhat = tl.where(mask, (read(x, offset, mask) - mean) * rstd, 0.0)
        dz = read(dy, offset, mask)
        if ACTIVATION != "none":
            z = preactivation(xhat, w, b, residual, offset, mask)
            dz = tl.where(mask, dz * slope(z, ACTIVATION), 0.0)
        sum_dz_xhat += dz * xhat
        sum_dz += dz
        if dresidual is not None:
            tl.store(dresidual + offset, dz, mask=mask)
        if dx is not None:
            tl.store(dx + offset, dz * w * rstd, mask=mask)
    return total(sum_dz_xhat, 2), total(sum_dz, 2)


@triton.jit
def write_dx(
    dy, x, weight, bias, residual, dx, dresidual,
    start, channel, channel_mask, mean, rstd, mean_g, dot, begin, end,
    num_channels, positions, values,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """dx = (g - mean(g) - xhat * mean(g * xhat)) * rstd, where g = dz * weight; dresidual = dz."""
    lane = tl.arange(0, P)[None, None, :]
    w = parameter(weight, channel, channel_mask, 1.0)
    b = parameter(bias, channel, channel_mask, 0.0)
    for r0 in range(begin, end, P):
        offset = start + offset_in_slice(
            channel[:, :, None], r0, lane, num_channels, positions, CHANNELS_LAST, SPANS, UNIT
        )
        mask = channel_mask[:, :, None] & (r0 + lane < values)
        xhat = (read(x, offset, mask) - mean) * rstd
        g = read(dy, offset, mask)
        if ACTIVATION != "none":
            z = preactivation(xhat, w, b, residual, offset, mask)
            g = g * slope(z, ACTIVATION)
            if dresidual is not None:
                tl.store(dresidual + offset, g, mask=mask)
        tl.store(dx + offset, (g * w - mean_g - xhat * dot) * rstd, mask=mask)
