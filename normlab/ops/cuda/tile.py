"""What all kernels do with a tile: where it lies, its sums, z and its gradient.

A tile is [groups, channels, positions], any of which may be 1. Values and sums are float32,
offsets int64: sizes come as int64, and every offset is made of them. What belongs to groups or
channels is read as [groups] or [groups, channels] and spread afterwards: a tile with axes of size 1
would be read anew by every thread, once per value it holds.
"""

import triton
from triton import language as tl

# arguments whose values no kernel is compiled anew for: UNIT says what matters about them
SIZES = (
    "slices", "samples", "groups", "channels", "positions", "num_channels", "rows",
    "chunks", "blocks", "steps", "part_chunks", "part_steps",
)  # fmt: skip

# pointers into one tensor of statistics, aligned or not as their number happens to be
STATISTICS = ("mean", "var", "rstd", "scale")


@triton.jit
def total(values, axis: tl.constexpr):
    """The sum over one axis."""
    return tl.reduce(values, axis, tl.standard._sum_combine)


@triton.jit
def multiple(size, UNIT: tl.constexpr):
    """The size, now known to the compiler as a multiple of UNIT: it may read several at once."""
    return size // UNIT * UNIT


@triton.jit
def offset_in_slice(
    channel, begin, lane, num_channels, positions,
    CHANNELS_LAST: tl.constexpr, SPANS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Where a slice has position begin + lane, counted over all its samples, of a channel.

    `lane` is int32, the others int64. SPANS: channels first and more than one sample, so that
    positions are not evenly spaced; dividing int32 is several times faster.
    """
    if CHANNELS_LAST:
        offset = (begin + lane) * num_channels + channel
    elif SPANS:
        local = multiple(tl.cast(begin % positions, tl.int32), UNIT) + lane
        size = multiple(tl.cast(positions, tl.int32), UNIT)
        sample = begin // positions + local // size
        offset = (sample * num_channels + channel) * positions + local % size
    else:
        offset = channel * positions + (begin + lane)
    return offset


@triton.jit
def read(pointer, offset, mask):
    return tl.load(pointer + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def read_rstd(pointer, offset, mask, eps):
    """1/sqrt(var + eps) of the variances at the pointer; where eps is None, it has them ready."""
    value = read(pointer, offset, mask)
    if eps is not None:
        value = 1.0 / tl.sqrt_rn(value + eps)
    return value


@triton.jit
def parameter(pointer, channel, mask, DEFAULT: tl.constexpr):
    """Weight or bias of channels [groups, channels], spread over positions; DEFAULT for None."""
    if pointer is None:
        values = tl.full([1, 1, 1], DEFAULT, tl.float32)
    else:
        values = read(pointer, channel, mask)[:, :, None]
    return values


@triton.jit
def preactivation(xhat, w, b, residual, offset, mask):
    """z = xhat * weight + bias + residual."""
    z = xhat * w + b
    if residual is not None:
        z = z + read(residual, offset, mask)
    return z
