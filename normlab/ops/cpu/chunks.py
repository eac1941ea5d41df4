"""Chunks: the parts of a channels-last slice that are summed by themselves, see `plan`."""

from normlab.ops.cpu import plan
from normlab.ops.cpu.parallel import jit
from normlab.ops.cpu.pointers import at, get, put

SEVERAL = 4  # rows for which what belongs to a channel is read once
rows_per_chunk = jit(plan.rows_per_chunk)
at_wide = at("float64")


@jit
def join(partials, chunks, width, rest, padded, all_channels, c0, c1):
    """Add the sums of all chunks, two for each of these channels, to those of the first."""
    total = at_wide(partials)
    for k in range(1, chunks):
        partial = at_wide(partials + k * 2 * padded * 8)
        end = rest if rest and k == chunks - 1 else width
        for row in range(0, end, all_channels):
            for j in range(row + c0, row + c1):
                put(total, j, get(total, j) + get(partial, j))
            for j in range(padded + row + c0, padded + row + c1):
                put(total, j, get(total, j) + get(partial, j))
    if chunks == 1 and rest:
        for row in range(rest, width, all_channels):
            for j in range(row + c0, row + c1):
                put(total, j, 0.0)
                put(total, padded + j, 0.0)
