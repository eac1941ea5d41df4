"""Items: the parts of a channels-first tensor that threads take, see `plan`."""

from normlab.ops.cpu import plan
from normlab.ops.cpu.parallel import jit

ITEM = plan.ITEM
ALIGNED = 128  # elements; a longer row is written from where a line of the cache begins
rows_per_item, items_per_sample = jit(plan.rows_per_item), jit(plan.items_per_sample)
pieces_per_row, samples_per_item = jit(plan.pieces_per_row), jit(plan.samples_per_item)


@jit
def cut(samples, channels, positions):
    """How a unit is cut: samples per item, items per sample, rows per item, pieces per row."""
    return (
        samples_per_item(samples, channels * positions),
        items_per_sample(channels, positions),
        rows_per_item(channels, positions),
        pieces_per_row(positions),
    )


@jit
def item(k, cuts, samples, channels, positions):
    """Item k of a unit: samples, rows and positions, each from and to."""
    joined, per_sample, rows, pieces = cuts
    if per_sample == 1:
        return k * joined, min(samples, (k + 1) * joined), 0, channels, 0, positions
    i, j = k // per_sample, k % per_sample
    if rows:
        return i, i + 1, j * rows, min(channels, (j + 1) * rows), 0, positions
    row, piece = j // pieces, j % pieces
    return i, i + 1, row, row + 1, piece * ITEM, min(positions, (piece + 1) * ITEM)


@jit
def items_per_unit(cuts, samples):
    return (samples + cuts[0] - 1) // cuts[0] * cuts[1]
