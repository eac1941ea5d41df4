"""Sums over contiguous elements: of values in two passes, and of gradients.

Elements are added up as vectors in blocks that the first-level cache holds, blocks in float64.
Within a block values are shifted by the mean of an eighth of them or more, which is less than three
standard deviations from that of all, however they are ordered: little cancels, whatever the offset.
"""

from normlab.ops.cpu.parallel import jit
from normlab.ops.cpu.pointers import get, lanes_of, load, load_first, load_part, load_second
from normlab.ops.cpu.simd import fill, fma, keep, rounded, total

BLOCK = 4096  # elements; 16 KiB of float32
SHORT = 512  # elements; shorter runs share a block


@jit
def moments(x, start, runs, stride, length, origin):
    """Sums of (x - origin) and of its square over runs of so many elements, in float64."""
    first, second = 0.0, 0.0
    if length > SHORT:
        for run in range(runs):
            end = start + run * stride + length
            for at in range(end - length, end, BLOCK):
                first, second = _block(x, at, 1, 0, min(BLOCK, end - at), origin, first, second)
    else:
        run, several = 0, runs
        if runs * length > BLOCK:
            several = BLOCK // length
        while run < runs:
            at, n = start + run * stride, min(several, runs - run)
            first, second = _block(x, at, n, stride, length, origin, first, second)
            run += several
    return first, second


@jit
def _block(x, start, runs, stride, length, origin, first, second):
    """The sums with those of a block added."""
    shift = _rough_mean(x, start, min(runs, 1 + SHORT // length), stride, min(SHORT, length))
    one, two = _shifted(x, start, runs, stride, length, shift)
    n, d = runs * length, shift - origin
    return first + (n * d + one), second + (two + 2 * d * one + n * d * d)


@jit
def _rough_mean(x, start, runs, stride, length):
    """The mean but for rounding; exactly the value where all are equal."""
    w = lanes_of(x)
    origin = get(x, start)
    shift = fill(x, origin)
    a = b = c = d = fill(x, 0.0)
    for run in range(runs):
        i = start + run * stride
        end = i + length
        while i + 4 * w <= end:
            a = a + (load_first(x, i) - shift)
            b = b + (load_second(x, i) - shift)
            c = c + (load_first(x, i + 2 * w) - shift)
            d = d + (load_second(x, i + 2 * w) - shift)
            i += 4 * w
        while i + w <= end:
            a = a + (load(x, i) - shift)
            i += w
        if i < end:
            b = b + keep(load_part(x, i, end - i) - shift, end - i)
    return rounded(x, origin + total((a + b) + (c + d)) / (runs * length))


@jit
def _shifted(x, start, runs, stride, length, shift):
    """Sums of x - shift and of its square."""
    w = lanes_of(x)
    s = fill(x, shift)
    a = b = c = d = fill(x, 0.0)
    aa = bb = cc = dd = fill(x, 0.0)
    for run in range(runs):
        i = start + run * stride
        end = i + length
        while i + 4 * w <= end:
            p, q = load_first(x, i) - s, load_second(x, i) - s
            r, t = load_first(x, i + 2 * w) - s, load_second(x, i + 2 * w) - s
            a, b, c, d = a + p, b + q, c + r, d + t
            aa, bb, cc, dd = fma(p, p, aa), fma(q, q, bb), fma(r, r, cc), fma(t, t, dd)
            i += 4 * w
        while i + w <= end:
            p = load(x, i) - s
            a, aa = a + p, fma(p, p, aa)
            i += w
        if i < end:
            p = keep(load_part(x, i, end - i) - s, end - i)
            b, bb = b + p, fma(p, p, bb)
    return total((a + b) + (c + d)), total((aa + bb) + (cc + dd))


@jit
def is_lost(var, eps):
    """Whether squares left the type's range, in a way that shows: too large, too small, or NaN."""
    return not var < 1e30 or (var <= 1e-30 and eps < 1e-20)


@jit
def moments_of_anything(x, base, samples, stride, run, center):
    """Mean and variance of `samples` runs in float64: where squares leave the type's range."""
    count = samples * run
    mean, var = 0.0, 0.0
    if center:
        for i in range(samples):
            for j in range(run):
                mean += get(x, base + i * stride + j) / count
    for i in range(samples):
        for j in range(run):
            d = get(x, base + i * stride + j) - mean
            var += d * d / count
    return mean, var


@jit
def finish(one, two, count, origin, center):
    """Mean and variance from the sums of shifted values and of their squares."""
    if not center:
        return 0.0, two / count
    var = (two - one * one / count) / count
    return origin + one / count, 0.0 if var < 0 else var
