"""The backward pass for statistics along the last axis; see `lines_forward` for how work is cut."""

from collections.abc import Callable

from normlab.ops.cpu import plan, words
from normlab.ops.cpu.activations import ACTIVATIONS
from normlab.ops.cpu.parallel import jit, meet, share, who
from normlab.ops.cpu.pointers import (
    COMPUTE,
    ITEMSIZE,
    address_of,
    at,
    get,
    lanes_of,
    load,
    load_part,
    load_wide,
    put,
    store,
    store_part,
    stream,
)
from normlab.ops.cpu.simd import fill, fma, keep, rounded, total
from normlab.ops.cpu.sums import BLOCK

lines_per_chunk = jit(plan.lines_per_chunk)


def kernel(element: str, activation: str, has_residual: bool) -> Callable[[int], None]:
    """dx, dweight and dbias; dz if there is a residual and an activation."""
    gradient, plain = ACTIVATIONS[activation].gradient, activation == "none"
    keeps = plan.keeps_dz(activation, has_residual)
    of_x, of_real = at(element), at(COMPUTE[element])
    of_wide, of_words = at("float64"), at("int64")
    itemsize = ITEMSIZE[element]

    @jit
    def past_activation(d, v, residual, i, n, weight, bias, j, low, rstd):
        if plain:
            return d
        a = rstd * (load(weight, j) if n == 0 else load_part(weight, j, n))
        b = load(bias, j) if n == 0 else load_part(bias, j, n)
        z = fma(v, a, b - low * a)
        if has_residual:
            z = z + (load(residual, i) if n == 0 else load_part(residual, i, n))
        return gradient(d, z)

    @jit
    def sums(x, dy, residual, dz, start, count, weight, bias, j, mean, rstd, dweight, dbias):
        """Sums of dz · weight, also times xhat; dweight and dbias grow by this line's."""
        w = lanes_of(x)
        high, s = fill(x, mean), fill(x, rstd)
        low = fill(x, mean - rounded(x, mean))
        j -= start
        first, second = 0.0, 0.0
        i, end = start, start + count
        while i < end:
            stop = min(end, i + BLOCK)
            p = q = fill(x, 0.0)
            while i + w <= stop:
                v = load(x, i) - high
                d = past_activation(load(dy, i), v, residual, i, 0, weight, bias, j + i, low, s)
                if keeps:
                    store(dz, i, d)
                g = d * load(weight, j + i)
                v = (v - low) * s
                p, q = p + g, fma(g, v, q)
                store(dbias, j + i, load(dbias, j + i) + d)
                store(dweight, j + i, fma(d, v, load(dweight, j + i)))
                i += w
            if i < stop:
                n = stop - i
                v = keep(load_part(x, i, n) - high, n)
                d = load_part(dy, i, n)
                d = keep(past_activation(d, v, residual, i, n, weight, bias, j + i, low, s), n)
                if keeps:
                    store_part(dz, i, d, n)
                g = d * load_part(weight, j + i, n)
                v = (v - low) * s
                p, q = p + g, fma(g, v, q)
                b, c = load_part(dbias, j + i, n) + d, load_part(dweight, j + i, n)
                store_part(dbias, j + i, b, n)
                store_part(dweight, j + i, fma(d, v, c), n)
                i += n
            first += total(p)
            second += total(q)
        return first, second

    @jit
    def slope(x, dy, residual, dz, i, n, weight, bias, j, high, low, s, across, level):
        v = (load(x, i) if n == 0 else load_part(x, i, n)) - high
        if keeps:
            d = load(dz, i) if n == 0 else load_part(dz, i, n)
        else:
            d = load(dy, i) if n == 0 else load_part(dy, i, n)
            d = past_activation(d, v, residual, i, n, weight, bias, j, low, s)
        a = s * (load(weight, j) if n == 0 else load_part(weight, j, n))
        return fma(d, a, fma((v - low) * s, across, level))

    @jit
    def write(x, dy, residual, dz, dx, start, count, weight, bias, j, mean, rstd, slant, flat,
              streaming):  # fmt: skip
        w = lanes_of(x)
        high, s = fill(x, mean), fill(x, rstd)
        low = fill(x, mean - rounded(x, mean))
        across, level = fill(x, slant), fill(x, flat)
        j -= start
        i, end = start, start + count
        if streaming:
            n = min(count, (-address_of(dx, start) & (w * itemsize - 1)) // itemsize)
            if n:
                v = slope(x, dy, residual, dz, i, n, weight, bias, j + i, high, low, s, across,
                          level)  # fmt: skip
                store_part(dx, i, v, n)
                i += n
            while i + w <= end:
                stream(dx, i, slope(x, dy, residual, dz, i, 0, weight, bias, j + i, high, low, s,
                                    across, level))  # fmt: skip
                i += w
        else:
            while i + w <= end:
                store(dx, i, slope(x, dy, residual, dz, i, 0, weight, bias, j + i, high, low, s,
                                   across, level))  # fmt: skip
                i += w
        if i < end:
            n = end - i
            v = slope(x, dy, residual, dz, i, n, weight, bias, j + i, high, low, s, across, level)
            store_part(dx, i, v, n)

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
        lines, groups, channels = get(w, words.SLICES), get(w, words.GROUPS), get(w, words.CHANNELS)
        center, given, streaming = get(w, words.CENTER), get(w, words.GIVEN), get(w, words.STREAM)
        rank, size = who(w)
        units = get(w, words.SLICES) * groups

        length = groups * channels
        padded = (length + 15) // 16 * 16
        per_chunk = lines_per_chunk(lines)
        chunks = (lines + per_chunk - 1) // per_chunk
        own = get(w, words.SCRATCH) + (chunks + rank) * 2 * padded * 8
        own_dweight, own_dbias = of_real(own), of_real(own + padded * 8)
        k, last = share(chunks, rank, size)
        while k < last:
            for j in range(0, padded, lanes_of(x)):
                store(own_dweight, j, fill(x, 0.0))
                store(own_dbias, j, fill(x, 0.0))
            for line in range(k * per_chunk, min(lines, (k + 1) * per_chunk)):
                for g in range(groups):
                    unit = line * groups + g
                    base, j = unit * channels, g * channels
                    mean, rstd = get(statistics, unit), get(statistics, 2 * units + unit)
                    one, two = sums(x, dy, residual, dz, base, channels, weight, bias, j, mean,
                                    rstd, own_dweight, own_dbias)  # fmt: skip
                    slant, flat = 0.0, 0.0
                    if not given:
                        slant = -two / channels * rstd
                        flat = -one / channels * rstd if center else 0.0
                    write(x, dy, residual, dz, dx, base, channels, weight, bias, j, mean, rstd,
                          slant, flat, streaming)  # fmt: skip
            partial = of_wide(get(w, words.SCRATCH) + k * 2 * padded * 8)
            for j in range(0, padded, 8):
                store(partial, j, load_wide(own_dweight, j))
                store(partial, padded + j, load_wide(own_dbias, j))
            k += 1

        meet(w, size)
        channel, last = share(length, rank, size)
        while channel < last:
            one, two = 0.0, 0.0
            for k in range(chunks):
                partial = of_wide(get(w, words.SCRATCH) + k * 2 * padded * 8)
                one += get(partial, padded + channel)
                two += get(partial, channel)
            put(dbias, channel, one)
            put(dweight, channel, two)
            channel += 1

    return backward
