"""The backward pass for channels-last memory; see `rows_forward` for how work is cut."""

from collections.abc import Callable

from normlab.ops.cpu import plan, words
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
from normlab.ops.cpu.simd import fill, fma, keep, rounded


def kernel(element: str, activation: str, has_residual: bool) -> Callable[[int], None]:
    """dx, dweight and dbias; dz if there is a residual and an activation."""
    gradient, plain = ACTIVATIONS[activation].gradient, activation == "none"
    keeps = plan.keeps_dz(activation, has_residual)
    of_x, of_real = at(element), at(COMPUTE[element])
    of_wide, of_words = at("float64"), at("int64")
    real_size = ITEMSIZE[COMPUTE[element]]

    @jit
    def past_activation(d, v, residual, i, n, a, b):
        if plain:
            return d
        z = fma(v, a, b)
        if has_residual:
            z = z + (load(residual, i) if n == 0 else load_part(residual, i, n))
        return gradient(d, z)

    @jit
    def sums(x, dy, residual, dz, start, rows, width, shift, slope, scale, offset, first,
             second):  # fmt: skip
        """Per channel, sums of dz and of dz · (x - shift) · slope."""
        w = lanes_of(x)
        j = 0
        while j < width:
            store(first, j, fill(x, 0.0))
            store(second, j, fill(x, 0.0))
            j += w
        for row in range(0, rows, SEVERAL):
            count = min(SEVERAL, rows - row)
            j = 0
            while j + w <= width:
                s, t, a, b = load(shift, j), load(slope, j), load(scale, j), load(offset, j)
                p = q = fill(x, 0.0)
                i = start + row * width + j
                ahead = start + (row + SEVERAL) * width + j * SEVERAL
                for _ in range(count):
                    prefetch(x, ahead)
                    prefetch(dy, ahead)
                    ahead += w
                    v = load(x, i) - s
                    d = past_activation(load(dy, i), v, residual, i, 0, a, b)
                    if keeps:
                        store(dz, i, d)
                    p, q = p + d, fma(d, v * t, q)
                    i += width
                store(first, j, load(first, j) + p)
                store(second, j, load(second, j) + q)
                j += w
            if j < width:
                s, t, a, b = load(shift, j), load(slope, j), load(scale, j), load(offset, j)
                p, q, n = fill(x, 0.0), fill(x, 0.0), width - j
                i = start + row * width + j
                for _ in range(count):
                    v = keep(load_part(x, i, n) - s, n)
                    d = keep(past_activation(load_part(dy, i, n), v, residual, i, n, a, b), n)
                    if keeps:
                        store_part(dz, i, d, n)
                    p, q = p + d, fma(d, keep(v * t, n), q)
                    i += width
                store(first, j, load(first, j) + p)
                store(second, j, load(second, j) + q)

    @jit
    def combined(x, dy, residual, dz, i, n, s, t, a, b, by_x, constant):
        v = (load(x, i) if n == 0 else load_part(x, i, n)) - s
        if keeps:
            d = load(dz, i) if n == 0 else load_part(dz, i, n)
        else:
            d = load(dy, i) if n == 0 else load_part(dy, i, n)
            d = past_activation(d, v, residual, i, n, a, b)
        return fma(d, a, fma(v * t, by_x, constant))

    @jit
    def write(x, dy, residual, dz, dx, start, rows, width, shift, slope, scale, offset, across,
              level, streaming):  # fmt: skip
        """dx = dz · scale + (x - shift) · slope · across + level of a few rows."""
        w = lanes_of(x)
        j = 0
        while j < width:
            s, t, a, b = load(shift, j), load(slope, j), load(scale, j), load(offset, j)
            by_x, constant = load(across, j), load(level, j)
            i = start + j
            ahead = start - SEVERAL * width + j * SEVERAL
            if j + w <= width:
                for _ in range(rows):
                    prefetch(x, ahead)
                    prefetch(dz if keeps else dy, ahead)
                    ahead += w
                    v = combined(x, dy, residual, dz, i, 0, s, t, a, b, by_x, constant)
                    if streaming:
                        stream(dx, i, v)
                    else:
                        store(dx, i, v)
                    i += width
            else:
                n = width - j
                for _ in range(rows):
                    v = combined(x, dy, residual, dz, i, n, s, t, a, b, by_x, constant)
                    store_part(dx, i, v, n)
                    i += width
            j += w

    def backward(address):
        w = of_words(address)
        x, dy, residual = (
            of_x(get(w, words.X)),
            of_x(get(w, words.DY)),
            of_x(get(w, words.RESIDUAL)),
        )
        dx, dz = of_x(get(w, words.Y)), of_x(get(w, words.DZ))
        weight, bias = of_real(get(w, words.WEIGHT)), of_real(get(w, words.BIAS))
        dweight, dbias = of_real(get(w, words.DWEIGHT)), of_real(get(w, words.DBIAS))
        statistics = of_wide(get(w, words.STATISTICS))
        slices, groups, channels = (
            get(w, words.SLICES),
            get(w, words.GROUPS),
            get(w, words.CHANNELS),
        )
        has_weight = get(w, words.WEIGHT) != 0
        center, given, streaming = get(w, words.CENTER), get(w, words.GIVEN), get(w, words.STREAM)
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

        # per slice and channel, the sums that dbias and dweight are made of
        by_channel = of_wide(get(w, words.SCRATCH))
        own = get(w, words.SCRATCH) + slices * 2 * all_channels * 8
        common = own + size * 2 * padded * real_size
        own += rank * 2 * padded * real_size
        first_sum, second_sum = of_real(own), of_real(own + padded * real_size)
        if not together:
            common += rank * (chunks * 2 * padded * 8 + 6 * padded * real_size)
        high, scale = of_real(common), of_real(common + padded * real_size)
        offset = of_real(common + 2 * padded * real_size)
        across = of_real(common + 3 * padded * real_size)
        level = of_real(common + 4 * padded * real_size)
        slope = of_real(common + 5 * padded * real_size)
        partials = common + 6 * padded * real_size
        total = of_wide(partials)

        b, last_slice = (0, slices) if together else share(slices, rank, size)
        first, last = share(chunks, rank, size) if together else (0, chunks)
        g0, g1 = share(groups, rank, size) if together else (0, groups)
        while b < last_slice:
            base = b * elements
            for g in range(g0, g1):
                mean, rstd = (
                    get(statistics, b * groups + g),
                    get(statistics, 2 * units + b * groups + g),
                )
                high_mean = rounded(x, mean)
                c0, c1 = g * channels, (g + 1) * channels
                spread(high, high_mean, c0, c1, width, all_channels)
                spread(slope, rstd, c0, c1, width, all_channels)
                affine(
                    weight, bias, scale, offset, rstd, mean - high_mean, c0, c1, width, all_channels
                )
            if together:
                meet(w, size)
            for k in range(first, last):
                start, count = base + k * per_chunk * width, min(per_chunk, rows - k * per_chunk)
                length = width
                if k == full:
                    start, count, length = base + rows * width, 1, rest
                sums(x, dy, residual, dz, start, count, length, high, slope, scale, offset,
                     first_sum, second_sum)  # fmt: skip
                partial = of_wide(partials + k * 2 * padded * 8)
                for j in range(0, length, 8):
                    store(partial, j, load_wide(first_sum, j))
                    store(partial, padded + j, load_wide(second_sum, j))
            if together:
                meet(w, size)
            join(partials, chunks, width, rest, padded, all_channels, g0 * channels, g1 * channels)
            for g in range(g0, g1):
                mean, rstd = (
                    get(statistics, b * groups + g),
                    get(statistics, 2 * units + b * groups + g),
                )
                low_mean = mean - rounded(x, mean)
                one, two = 0.0, 0.0
                for channel in range(g * channels, (g + 1) * channels):
                    p, q = 0.0, 0.0
                    for j in range(channel, width, all_channels):
                        p += get(total, j)
                        q += get(total, padded + j)
                    q -= low_mean * rstd * p
                    put(by_channel, 2 * b * all_channels + channel, p)
                    put(by_channel, (2 * b + 1) * all_channels + channel, q)
                    one += p * get(weight, channel) if has_weight else p
                    two += q * get(weight, channel) if has_weight else q
                count = lines * channels
                slant, flat = 0.0, 0.0
                if not given:
                    slant = -two / count * rstd
                    flat = (-one / count * rstd if center else 0.0) - low_mean * rstd * slant
                c0, c1 = g * channels, (g + 1) * channels
                spread(across, slant, c0, c1, width, all_channels)
                spread(level, flat, c0, c1, width, all_channels)
            if together:
                meet(w, size)
            k = last - 1
            while k >= first:
                if k == full:
                    write(x, dy, residual, dz, dx, base + rows * width, 1, rest, high, slope,
                          scale, offset, across, level, 0)  # fmt: skip
                else:
                    row = min(rows, (k + 1) * per_chunk)
                    while row > k * per_chunk:
                        count = min(SEVERAL, row - k * per_chunk)
                        row -= count
                        write(x, dy, residual, dz, dx, base + row * width, count, width, high,
                              slope, scale, offset, across, level, streaming)  # fmt: skip
                k -= 1
            b += 1
            if together:
                meet(w, size)

        meet(w, size)
        channel, last = share(all_channels, rank, size)
        while channel < last:
            one, two = 0.0, 0.0
            for b in range(slices):
                one += get(by_channel, 2 * b * all_channels + channel)
                two += get(by_channel, (2 * b + 1) * all_channels + channel)
            put(dbias, channel, one)
            put(dweight, channel, two)
            channel += 1

    return backward
