"""The forward pass for statistics along the last axis: (slices, groups · channels).

weight and bias lie along that axis too: this is layer norm as transformers use it, and group norm
of vectors. A line of one group is read, and read again from the cache. Lines are dealt to the
threads in chunks; in the backward pass a chunk adds up dweight and dbias in the type elements are
computed in, chunks are added in float64. Chunks follow from the sizes alone, so results do not
depend on the number of threads.
"""

import math
from collections.abc import Callable

from normlab.ops.cpu import words
from normlab.ops.cpu.activations import ACTIVATIONS
from normlab.ops.cpu.parallel import jit, share, who
from normlab.ops.cpu.pointers import (
    COMPUTE,
    ITEMSIZE,
    address_of,
    at,
    get,
    lanes_of,
    load,
    load_part,
    put,
    store,
    store_part,
    stream,
)
from normlab.ops.cpu.simd import fill, fma, rounded
from normlab.ops.cpu.sums import finish, is_lost, moments, moments_of_anything


def kernel(element: str, activation: str, has_residual: bool) -> Callable[[int], None]:
    """y, and mean, var and rstd unless they are given."""
    value = ACTIVATIONS[activation].value
    of_x, of_real = at(element), at(COMPUTE[element])
    of_wide, of_words = at("float64"), at("int64")
    itemsize = ITEMSIZE[element]

    @jit
    def result(v, residual, i, n, weight, bias, j, high, low, rstd):
        a = rstd * (load(weight, j) if n == 0 else load_part(weight, j, n))
        b = load(bias, j) if n == 0 else load_part(bias, j, n)
        z = fma(v - high, a, b - low * a)
        if has_residual:
            z = z + (load(residual, i) if n == 0 else load_part(residual, i, n))
        return value(z)

    @jit
    def write(x, residual, y, start, count, weight, bias, j, mean, rstd, streaming):
        w = lanes_of(x)
        high, s = fill(x, mean), fill(x, rstd)
        low = fill(x, mean - rounded(x, mean))
        j -= start
        i, end = start, start + count
        if streaming:
            n = min(count, (-address_of(y, start) & (w * itemsize - 1)) // itemsize)
            if n:
                v = result(load_part(x, i, n), residual, i, n, weight, bias, j + i, high, low, s)
                store_part(y, i, v, n)
                i += n
            while i + w <= end:
                v = result(load(x, i), residual, i, 0, weight, bias, j + i, high, low, s)
                stream(y, i, v)
                i += w
        else:
            while i + w <= end:
                v = result(load(x, i), residual, i, 0, weight, bias, j + i, high, low, s)
                store(y, i, v)
                i += w
        if i < end:
            n = end - i
            v = result(load_part(x, i, n), residual, i, n, weight, bias, j + i, high, low, s)
            store_part(y, i, v, n)

    def forward(address):
        w = of_words(address)
        x, residual, y = of_x(get(w, words.X)), of_x(get(w, words.RESIDUAL)), of_x(get(w, words.Y))
        weight, bias = of_real(get(w, words.WEIGHT)), of_real(get(w, words.BIAS))
        statistics = of_wide(get(w, words.STATISTICS))
        groups, channels = get(w, words.GROUPS), get(w, words.CHANNELS)
        center, given, streaming = get(w, words.CENTER), get(w, words.GIVEN), get(w, words.STREAM)
        eps = get(of_wide(address), words.EPS)
        rank, size = who(w)
        units = get(w, words.SLICES) * groups

        unit, last = share(units, rank, size)
        while unit < last:
            base = unit * channels
            if given:
                mean, rstd = get(statistics, unit), get(statistics, 2 * units + unit)
            else:
                origin = get(x, base) if center else 0.0
                one, two = moments(x, base, 1, 0, channels, origin)
                mean, var = finish(one, two, channels, origin, center)
                if is_lost(var, eps):
                    mean, var = moments_of_anything(x, base, 1, 0, channels, center)
                rstd = rounded(x, 1 / math.sqrt(var + eps))
                put(statistics, unit, mean)
                put(statistics, units + unit, var)
                put(statistics, 2 * units + unit, rstd)
            write(x, residual, y, base, channels, weight, bias, unit % groups * channels,
                  mean, rstd, streaming)  # fmt: skip
            unit += 1

    return forward
