"""The forward pass for channels-first memory: (slices · samples, groups · channels, positions).

A unit is what shares a statistic: in each of `samples` samples one run of channels · positions
elements. Units are dealt to the threads; one unit is read, and read again from the cache, before
the next, so a tensor passes through memory once. Where there are fewer units than threads, all
work on one together, item by item, with a barrier between the passes. Items, and the order in
which their sums are added, follow from the sizes alone: results do not depend on the number of
threads.

Elements are computed in float32 (float64 for float64), sums over blocks and statistics in float64.
"""

import math
from collections.abc import Callable

from normlab.ops.cpu import words
from normlab.ops.cpu.activations import ACTIVATIONS
from normlab.ops.cpu.items import ALIGNED, cut, item, items_per_unit
from normlab.ops.cpu.pairs import FIRST, SECOND, take
from normlab.ops.cpu.parallel import jit, meet, share, who
from normlab.ops.cpu.pointers import (
    COMPUTE,
    at,
    get,
    lanes_of,
    put,
    store_part,
    store_two,
    stream_two,
    to_line,
)
from normlab.ops.cpu.simd import fill, fma, rounded
from normlab.ops.cpu.sums import finish, is_lost, moments, moments_of_anything


def kernel(element: str, activation: str, has_residual: bool) -> Callable[[int], None]:
    """y, and mean, var and rstd unless they are given."""
    value = ACTIVATIONS[activation].value
    of_x, of_real = at(element), at(COMPUTE[element])
    of_wide, of_words = at("float64"), at("int64")

    @jit
    def result(x, residual, i, n, shift, a, b):
        z = fma(take(x, i, n) - shift, a, b)
        if has_residual:
            z = z + take(residual, i, n)
        return value(z)

    @jit
    def write(x, residual, y, start, count, shift, scale, offset, streaming):
        w = lanes_of(x)
        s, a, b = fill(x, shift), fill(x, scale), fill(x, offset)
        i, end = start, start + count
        lines = start + min(count, to_line(y, start))
        if streaming or count < 2 * w:
            while i < lines:
                n = min(w, lines - i)
                store_part(y, i, result(x, residual, i, n, s, a, b), n)
                i += n
            while i + 2 * w <= end:
                p = result(x, residual, i, FIRST, s, a, b)
                stream_two(y, i, p, result(x, residual, i, SECOND, s, a, b))
                i += 2 * w
            while i < end:
                n = min(w, end - i)
                store_part(y, i, result(x, residual, i, n, s, a, b), n)
                i += n
            return
        # pairs of vectors only: the first and the last overlap their neighbours
        if lines > i and count >= ALIGNED:
            p = result(x, residual, i, FIRST, s, a, b)
            store_two(y, i, p, result(x, residual, i, SECOND, s, a, b))
            i = lines
        while i + 2 * w <= end:
            p = result(x, residual, i, FIRST, s, a, b)
            store_two(y, i, p, result(x, residual, i, SECOND, s, a, b))
            i += 2 * w
        if i < end:
            i = end - 2 * w
            p = result(x, residual, i, FIRST, s, a, b)
            store_two(y, i, p, result(x, residual, i, SECOND, s, a, b))

    def forward(address):
        w = of_words(address)
        x, residual, y = of_x(get(w, words.X)), of_x(get(w, words.RESIDUAL)), of_x(get(w, words.Y))
        weight, bias = of_real(get(w, words.WEIGHT)), of_real(get(w, words.BIAS))
        statistics = of_wide(get(w, words.STATISTICS))
        scratch = of_wide(get(w, words.SCRATCH))
        samples, groups = get(w, words.SAMPLES), get(w, words.GROUPS)
        channels, positions = get(w, words.CHANNELS), get(w, words.POSITIONS)
        has_weight, has_bias = get(w, words.WEIGHT) != 0, get(w, words.BIAS) != 0
        center, given, streaming = get(w, words.CENTER), get(w, words.GIVEN), get(w, words.STREAM)
        eps = get(of_wide(address), words.EPS)

        rank, size = who(w)
        units, run = get(w, words.SLICES) * groups, channels * positions
        count = samples * run
        cuts = cut(samples, channels, positions)
        items = items_per_unit(cuts, samples)
        together = get(w, words.TOGETHER)
        unit, last_unit = (0, units) if together else share(units, rank, size)
        first, last = share(items, rank, size) if together else (0, items)
        while unit < last_unit:
            g = unit % groups
            base = (unit // groups * samples * groups + g) * run
            if given:
                mean, rstd = get(statistics, unit), get(statistics, 2 * units + unit)
            else:
                origin = get(x, base) if center else 0.0
                one, two = 0.0, 0.0
                partial = (unit & 1) * 2 * items
                for k in range(first, last):
                    i, stop, row, last_row, low, high = item(k, cuts, samples, channels, positions)
                    start = base + i * groups * run + row * positions + low
                    length = (last_row - row - 1) * positions + high - low
                    p, q = moments(x, start, stop - i, groups * run, length, origin)
                    if together:
                        put(scratch, partial + 2 * k, p)
                        put(scratch, partial + 2 * k + 1, q)
                    one += p
                    two += q
                if together:
                    meet(w, size)
                    one, two = 0.0, 0.0
                    for k in range(items):
                        one += get(scratch, partial + 2 * k)
                        two += get(scratch, partial + 2 * k + 1)
                mean, var = finish(one, two, count, origin, center)
                if is_lost(var, eps):
                    mean, var = moments_of_anything(x, base, samples, groups * run, run, center)
                rstd = rounded(x, 1 / math.sqrt(var + eps))
                if rank == 0 or not together:
                    put(statistics, unit, mean)
                    put(statistics, units + unit, var)
                    put(statistics, 2 * units + unit, rstd)
            high_mean = rounded(x, mean)
            low_mean = mean - high_mean
            k = last - 1
            while k >= first:
                i, stop, row, last_row, low, high = item(k, cuts, samples, channels, positions)
                while row < last_row:
                    channel = g * channels + row
                    scale = rstd * get(weight, channel) if has_weight else rstd
                    offset = (get(bias, channel) if has_bias else 0.0) - low_mean * scale
                    for j in range(i, stop):
                        start = base + j * groups * run + row * positions + low
                        write(x, residual, y, start, high - low, high_mean, scale, offset,
                              streaming)  # fmt: skip
                    row += 1
                k -= 1
            unit += 1

    return forward
