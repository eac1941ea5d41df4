"""The backward pass for channels-first memory; see `planes_forward` for how work is cut."""

from collections.abc import Callable

from normlab.ops.cpu import plan, words
from normlab.ops.cpu.activations import ACTIVATIONS
from normlab.ops.cpu.items import ALIGNED, ITEM, cut, item, items_per_unit
from normlab.ops.cpu.pairs import FIRST, SECOND, take
from normlab.ops.cpu.parallel import inlined, jit, meet, share, who
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
from normlab.ops.cpu.simd import fill, fma, keep, rounded, total
from normlab.ops.cpu.sums import BLOCK


def kernel(element: str, activation: str, has_residual: bool) -> Callable[[int], None]:
    """dx, dweight and dbias; dz if there is a residual and an activation."""
    gradient, plain = ACTIVATIONS[activation].gradient, activation == "none"
    keeps = plan.keeps_dz(activation, has_residual)
    rewritten = keeps and not has_residual  # dz lies where dx will
    of_x, of_real = at(element), at(COMPUTE[element])
    of_wide, of_words = at("float64"), at("int64")

    @jit
    def past_activation(d, v, residual, i, n, a, b):
        if plain:
            return d
        z = fma(v, a, b)
        if has_residual:
            z = z + take(residual, i, n)
        return gradient(d, z)

    @inlined
    def sums(x, dy, residual, dz, start, runs, stride, length, shift, slope, scale, offset):
        """Sums of dz and of dz · (x - shift) · slope over runs of elements."""
        first, second = 0.0, 0.0
        run, several = 0, runs
        if runs * length > BLOCK:
            several = max(1, BLOCK // length)
        while run < runs:
            at, n = start + run * stride, min(several, runs - run)
            one, two = block(
                x, dy, residual, dz, at, n, stride, length, shift, slope, scale, offset
            )
            first += one
            second += two
            run += several
        return first, second

    @inlined
    def block(x, dy, residual, dz, start, runs, stride, length, shift, slope, scale, offset):
        w = lanes_of(x)
        s, t, a, b = fill(x, shift), fill(x, slope), fill(x, scale), fill(x, offset)
        first, second = 0.0, 0.0
        p = q = pp = qq = fill(x, 0.0)
        for run in range(runs):
            i = start + run * stride
            end = i + length
            while i < end:
                stop = min(end, i + BLOCK)
                while i + 2 * w <= stop:
                    u, v = take(x, i, FIRST) - s, take(x, i, SECOND) - s
                    d = past_activation(take(dy, i, FIRST), u, residual, i, FIRST, a, b)
                    e = past_activation(take(dy, i, SECOND), v, residual, i, SECOND, a, b)
                    if keeps:
                        store_two(dz, i, d, e)
                    p, q = p + d, q + e
                    pp, qq = fma(d, u * t, pp), fma(e, v * t, qq)
                    i += 2 * w
                while i < stop:
                    n = min(w, stop - i)
                    u = take(x, i, n) - s
                    d = keep(past_activation(take(dy, i, n), u, residual, i, n, a, b), n)
                    if keeps:
                        store_part(dz, i, d, n)
                    p = p + d
                    pp = fma(d, keep(u * t, n), pp)
                    i += n
                if length >= BLOCK:
                    first += total(p + q)
                    second += total(pp + qq)
                    p = q = pp = qq = fill(x, 0.0)
        if length < BLOCK:
            first += total(p + q)
            second += total(pp + qq)
        return first, second

    @jit
    def combined(x, dy, residual, dz, i, n, s, t, a, b, by_x, constant):
        v = take(x, i, n) - s
        d = take(dz, i, n) if keeps else past_activation(take(dy, i, n), v, residual, i, n, a, b)
        return fma(d, a, fma(v * t, by_x, constant))

    @jit
    def write(x, dy, residual, dz, dx, start, count, shift, slope, scale, offset, across, level,
              streaming):  # fmt: skip
        """dx = dz · scale + (x - shift) · slope · across + level."""
        w = lanes_of(x)
        s, t, a, b = fill(x, shift), fill(x, slope), fill(x, scale), fill(x, offset)
        by_x, constant = fill(x, across), fill(x, level)
        i, end = start, start + count
        lines = start + min(count, to_line(dx, start))
        if streaming or rewritten or count < 2 * w:
            while i < lines:
                n = min(w, lines - i)
                store_part(
                    dx, i, combined(x, dy, residual, dz, i, n, s, t, a, b, by_x, constant), n
                )
                i += n
            while i + 2 * w <= end:
                p = combined(x, dy, residual, dz, i, FIRST, s, t, a, b, by_x, constant)
                q = combined(x, dy, residual, dz, i, SECOND, s, t, a, b, by_x, constant)
                if streaming:
                    stream_two(dx, i, p, q)
                else:
                    store_two(dx, i, p, q)
                i += 2 * w
            while i < end:
                n = min(w, end - i)
                store_part(
                    dx, i, combined(x, dy, residual, dz, i, n, s, t, a, b, by_x, constant), n
                )
                i += n
            return
        # pairs of vectors only: the first and the last overlap their neighbours
        if lines > i and count >= ALIGNED:
            p = combined(x, dy, residual, dz, i, FIRST, s, t, a, b, by_x, constant)
            q = combined(x, dy, residual, dz, i, SECOND, s, t, a, b, by_x, constant)
            store_two(dx, i, p, q)
            i = lines
        while i + 2 * w <= end:
            p = combined(x, dy, residual, dz, i, FIRST, s, t, a, b, by_x, constant)
            q = combined(x, dy, residual, dz, i, SECOND, s, t, a, b, by_x, constant)
            store_two(dx, i, p, q)
            i += 2 * w
        if i < end:
            i = end - 2 * w
            p = combined(x, dy, residual, dz, i, FIRST, s, t, a, b, by_x, constant)
            q = combined(x, dy, residual, dz, i, SECOND, s, t, a, b, by_x, constant)
            store_two(dx, i, p, q)

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
        scratch = of_wide(get(w, words.SCRATCH))
        samples, groups = get(w, words.SAMPLES), get(w, words.GROUPS)
        channels, positions = get(w, words.CHANNELS), get(w, words.POSITIONS)
        has_weight, has_bias = get(w, words.WEIGHT) != 0, get(w, words.BIAS) != 0
        center, given, streaming = get(w, words.CENTER), get(w, words.GIVEN), get(w, words.STREAM)

        rank, size = who(w)
        units, run = get(w, words.SLICES) * groups, channels * positions
        count = samples * run
        cuts = cut(samples, channels, positions)
        items = items_per_unit(cuts, samples)
        pieces = cuts[3]
        together = get(w, words.TOGETHER)
        unit, last_unit = (0, units) if together else share(units, rank, size)
        first, last = share(items, rank, size) if together else (0, items)
        while unit < last_unit:
            g = unit % groups
            sample = unit // groups * samples
            mean, rstd = get(statistics, unit), get(statistics, 2 * units + unit)
            high_mean = rounded(x, mean)
            low_mean = mean - high_mean
            for k in range(first, last):
                i, stop, row, last_row, low, high = item(k, cuts, samples, channels, positions)
                # of one channel, samples are added up as they come; others get a sum each
                runs = stop - i if channels == 1 else 1
                while row < last_row:
                    channel = g * channels + row
                    scale = rstd * get(weight, channel) if has_weight else rstd
                    offset = (get(bias, channel) if has_bias else 0.0) - low_mean * scale
                    j = i
                    while j < stop:
                        at_row = ((sample + j) * groups + g) * channels + row
                        p, q = sums(x, dy, residual, dz, at_row * positions + low, runs,
                                    groups * run, high - low, high_mean, rstd, scale,
                                    offset)  # fmt: skip
                        partial = 2 * (at_row * pieces + low // ITEM)
                        put(scratch, partial, p)
                        put(scratch, partial + 1, q)
                        for _ in range(1, runs):
                            partial += 2 * groups * channels * pieces
                            put(scratch, partial, 0.0)
                            put(scratch, partial + 1, 0.0)
                        j += runs
                    row += 1
            if together:
                meet(w, size)
            level, across = 0.0, 0.0
            if not given:
                one, two = 0.0, 0.0
                for i in range(samples):
                    partial = 2 * ((sample + i) * groups + g) * channels * pieces
                    for row in range(channels):
                        scale = get(weight, g * channels + row) if has_weight else 1.0
                        for _ in range(pieces):
                            one += scale * get(scratch, partial)
                            two += scale * get(scratch, partial + 1)
                            partial += 2
                across = -(two - low_mean * rstd * one) / count * rstd
                level = (-one / count * rstd if center else 0.0) - low_mean * rstd * across
            k = last - 1
            while k >= first:
                i, stop, row, last_row, low, high = item(k, cuts, samples, channels, positions)
                while row < last_row:
                    channel = g * channels + row
                    scale = rstd * get(weight, channel) if has_weight else rstd
                    offset = (get(bias, channel) if has_bias else 0.0) - low_mean * scale
                    for j in range(i, stop):
                        at_row = ((sample + j) * groups + g) * channels + row
                        write(x, dy, residual, dz, dx, at_row * positions + low, high - low,
                              high_mean, rstd, scale, offset, across, level,
                              streaming)  # fmt: skip
                    row += 1
                k -= 1
            unit += 1

        meet(w, size)
        channel, last = share(groups * channels, rank, size)
        while channel < last:
            one, two = 0.0, 0.0
            unit = channel // channels
            partial = 2 * channel * pieces
            for _ in range(get(w, words.SLICES)):
                low_mean = get(statistics, unit) - rounded(x, get(statistics, unit))
                low = low_mean * get(statistics, 2 * units + unit)
                for _ in range(samples):
                    for piece in range(pieces):
                        p = get(scratch, partial + 2 * piece)
                        one += p
                        two += get(scratch, partial + 2 * piece + 1) - low * p
                    partial += 2 * groups * channels * pieces
                unit += groups
            put(dbias, channel, one)
            put(dweight, channel, two)
            channel += 1

    return backward
