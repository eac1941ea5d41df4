"""The forward pass for channels-last memory: (slices, samples · positions, groups · channels).

A slice is what shares statistics per group: samples · positions rows of all channels. Rows are read
one after the other, as one stream, and added up channel by channel into a few kilobytes; a chunk of
rows is summed in the type elements are computed in, chunks in float64. The second pass goes from
the end backwards, where the cache still holds rows. Slices are dealt to the threads; where there
are fewer, all work on one together, chunk by chunk, with barriers between the passes. Chunks follow
from the sizes alone, so results do not depend on the number of threads.

Few channels would leave vectors half empty, so several rows count as one: `width` is a multiple of
the channels. The rest of a slice, less than a row of that width, is the last chunk by itself.
"""

import math
from collections.abc import Callable

from normlab.ops.cpu import words
from normlab.ops.cpu.activations import ACTIVATIONS
from normlab.ops.cpu.chunks import SEVERAL, affine, join, rows_per_chunk, spread
from normlab.ops.cpu.parallel import jit, meet, share, who
from normlab.ops.cpu.pointers import (
    COMPUTE,
    ITEMSIZE,
    at,
    get,
    lanes_of,
    load,
    load_part,
    load_wide,
    prefetch,
    put,
    store,
    store_part,
    stream,
)
from normlab.ops.cpu.simd import fill, fma, rounded
from normlab.ops.cpu.sums import finish, is_lost, moments_of_anything


def kernel(element: str, activation: str, has_residual: bool) -> Callable[[int], None]:
    """y, and mean, var and rstd unless they are given."""
    value = ACTIVATIONS[activation].value
    of_x, of_real = at(element), at(COMPUTE[element])
    of_wide, of_words = at("float64"), at("int64")
    real_size = ITEMSIZE[COMPUTE[element]]

    @jit
    def shifts(x, start, rows, width, shift, centred):
        """Near the mean of the first rows; exactly the value where all are equal."""
        w = lanes_of(x)
        j = 0
        while j < width:
            i, n = start + j, min(w, width - j)
            if not centred:
                v = fill(x, 0.0)
            elif rows < 4:
                v = load_part(x, i, n)
            else:
                v = load_part(x, i, n) + load_part(x, i + width, n)
                v = v + (load_part(x, i + 2 * width, n) + load_part(x, i + 3 * width, n))
                v = v * fill(x, 0.25)
            store(shift, j, v)
            j += w

    @jit
    def sums(x, start, rows, width, shift, first, second):
        """Per channel, sums of x - shift and of its square."""
        w = lanes_of(x)
        j = 0
        while j < width:
            store(first, j, fill(x, 0.0))
            store(second, j, fill(x, 0.0))
            j += w
        row = 0
        while row + 4 <= rows:
            i = start + row * width
            j = 0
            while j + w <= width:
                for k in range(4):
                    prefetch(x, i + 4 * (width + j) + k * w)
                s = load(shift, j)
                p, q = load(x, i + j) - s, load(x, i + width + j) - s
                r, t = load(x, i + 2 * width + j) - s, load(x, i + 3 * width + j) - s
                store(first, j, load(first, j) + ((p + q) + (r + t)))
                store(second, j, fma(p, p, fma(q, q, fma(r, r, fma(t, t, load(second, j))))))
                j += w
            if j < width:
                s, n = load(shift, j), width - j
                for k in range(4):
                    p = load_part(x, i + k * width + j, n) - s
                    store(first, j, load(first, j) + p)
                    store(second, j, fma(p, p, load(second, j)))
            row += 4
        while row < rows:
            i = start + row * width
            j = 0
            while j < width:
                p = load_part(x, i + j, min(w, width - j)) - load(shift, j)
                store(first, j, load(first, j) + p)
                store(second, j, fma(p, p, load(second, j)))
                j += w
            row += 1

    @jit
    def from_origin(origin, shift, first, second, rows, width, partial, padded):
        """What the sums are of x - origin, in float64."""
        n, twice = fill(partial, 1.0 * rows), fill(partial, 2.0)
        for j in range(0, width, 8):
            d = load_wide(shift, j) - load_wide(origin, j)
            one = load_wide(first, j)
            store(partial, j, fma(n, d, one))
            store(partial, padded + j, fma(d, fma(n, d, twice * one), load_wide(second, j)))

    @jit
    def result(x, residual, i, n, s, a, b):
        z = fma((load(x, i) if n == 0 else load_part(x, i, n)) - s, a, b)
        if has_residual:
            z = z + (load(residual, i) if n == 0 else load_part(residual, i, n))
        return value(z)

    @jit
    def write(x, residual, y, start, rows, width, shift, scale, offset, streaming):
        """y of a few rows; what belongs to a channel is read once for all of them."""
        w = lanes_of(x)
        j = 0
        while j + w <= width:
            s, a, b = load(shift, j), load(scale, j), load(offset, j)
            i = start + j
            ahead = start - SEVERAL * width + j * SEVERAL
            for _ in range(rows):
                prefetch(x, ahead)
                ahead += w
                if streaming:
                    stream(y, i, result(x, residual, i, 0, s, a, b))
                else:
                    store(y, i, result(x, residual, i, 0, s, a, b))
                i += width
            j += w
        if j < width:
            s, a, b, n = load(shift, j), load(scale, j), load(offset, j), width - j
            i = start + j
            for _ in range(rows):
                store_part(y, i, result(x, residual, i, n, s, a, b), n)
                i += width

    def forward(address):
        w = of_words(address)
        x, residual, y = of_x(get(w, words.X)), of_x(get(w, words.RESIDUAL)), of_x(get(w, words.Y))
        weight, bias = of_real(get(w, words.WEIGHT)), of_real(get(w, words.BIAS))
        statistics = of_wide(get(w, words.STATISTICS))
        groups, channels = get(w, words.GROUPS), get(w, words.CHANNELS)
        center, given, streaming = get(w, words.CENTER), get(w, words.GIVEN), get(w, words.STREAM)
        eps = get(of_wide(address), words.EPS)
        together = get(w, words.TOGETHER)
        rank, size = who(w)
        units = get(w, words.SLICES) * groups

        lines, width = get(w, words.SAMPLES) * get(w, words.POSITIONS), get(w, words.WIDTH)
        all_channels = groups * channels
        elements = lines * all_channels
        rows, rest = elements // width, elements % width
        per_chunk = rows_per_chunk(width)
        full = (rows + per_chunk - 1) // per_chunk
        chunks = full + (rest > 0)
        padded = (width + 15) // 16 * 16

        own = get(w, words.SCRATCH) + rank * 4 * padded * real_size
        origin, shift = of_real(own), of_real(own + padded * real_size)
        sum_, squares = of_real(own + 2 * padded * real_size), of_real(own + 3 * padded * real_size)
        common = get(w, words.SCRATCH) + size * 4 * padded * real_size
        if not together:
            common += rank * (chunks * 2 * padded * 8 + 3 * padded * real_size)
        high, scale = of_real(common), of_real(common + padded * real_size)
        offset = of_real(common + 2 * padded * real_size)
        partials = common + 3 * padded * real_size
        total = of_wide(partials)

        b, last_slice = (
            (0, get(w, words.SLICES)) if together else share(get(w, words.SLICES), rank, size)
        )
        first, last = share(chunks, rank, size) if together else (0, chunks)
        g0, g1 = share(groups, rank, size) if together else (0, groups)
        while b < last_slice:
            base = b * elements
            if not given:
                for j in range(width):
                    put(origin, j, get(x, base + j % all_channels) if center else 0.0)
                for k in range(first, last):
                    partial = of_wide(partials + k * 2 * padded * 8)
                    start, count = (
                        base + k * per_chunk * width,
                        min(per_chunk, rows - k * per_chunk),
                    )
                    length = width
                    if k == full:
                        start, count, length = base + rows * width, 1, rest
                    shifts(x, start, count, length, shift, center)
                    sums(x, start, count, length, shift, sum_, squares)
                    from_origin(origin, shift, sum_, squares, count, length, partial, padded)
            if together:
                meet(w, size)
            if not given:
                join(
                    partials,
                    chunks,
                    width,
                    rest,
                    padded,
                    all_channels,
                    g0 * channels,
                    g1 * channels,
                )
            for g in range(g0, g1):
                unit = b * groups + g
                if given:
                    mean, rstd = get(statistics, unit), get(statistics, 2 * units + unit)
                else:
                    one, two = 0.0, 0.0
                    start = get(origin, g * channels)
                    for channel in range(g * channels, (g + 1) * channels):
                        p, q = 0.0, 0.0
                        for j in range(channel, width, all_channels):
                            p += get(total, j)
                            q += get(total, padded + j)
                        d = get(origin, channel) - start
                        one += lines * d + p
                        two += q + 2 * d * p + lines * d * d
                    count = lines * channels
                    mean, var = finish(one, two, count, start, center)
                    if is_lost(var, eps):
                        mean, var = moments_of_anything(
                            x, base + g * channels, lines, all_channels, channels, center
                        )
                    rstd = rounded(x, 1 / math.sqrt(var + eps))
                    put(statistics, unit, mean)
                    put(statistics, units + unit, var)
                    put(statistics, 2 * units + unit, rstd)
                high_mean = rounded(x, mean)
                c0, c1 = g * channels, (g + 1) * channels
                spread(high, high_mean, c0, c1, width, all_channels)
                affine(
                    weight, bias, scale, offset, rstd, mean - high_mean, c0, c1, width, all_channels
                )
            if together:
                meet(w, size)
            k = last - 1
            while k >= first:
                if k == full:
                    write(x, residual, y, base + rows * width, 1, rest, high, scale, offset, 0)
                else:
                    row = min(rows, (k + 1) * per_chunk)
                    while row > k * per_chunk:
                        count = min(SEVERAL, row - k * per_chunk)
                        row -= count
                        write(x, residual, y, base + row * width, count, width, high, scale,
                              offset, streaming)  # fmt: skip
                k -= 1
            b += 1

    return forward
