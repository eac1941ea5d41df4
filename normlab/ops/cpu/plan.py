"""How work is cut: by sizes alone, so that results do not depend on the number of threads.

Plain functions of sizes, which kernels compile and callers use to reserve memory.
"""

from normlab.ops.canonical import Form

# activations whose gradient is taken once and kept: it costs more than writing and reading it
COSTLY = {"silu", "gelu", "gelu_tanh", "sigmoid", "tanh"}
ITEM = 16384  # elements of a channels-first tensor that one thread takes at a time
CHUNK = 32768  # elements of a channels-last tensor that are summed in their own type
NARROW, WIDE = 192, 128  # channels: several rows are joined below, to rows at least so wide


def keeps_dz(activation: str, has_residual: bool) -> bool:
    """Whether the backward pass writes dz: for the residual, or to take its second pass from."""
    return activation != "none" and (has_residual or activation in COSTLY)


def rows_per_item(channels: int, positions: int) -> int:
    """Rows of positions in an item; 0 if a row is several items."""
    return 0 if positions > ITEM else min(channels, ITEM // positions)


def pieces_per_row(positions: int) -> int:
    """Items in a row of positions that is several, else 1."""
    return (positions + ITEM - 1) // ITEM


def samples_per_item(samples: int, run: int) -> int:
    """Samples whose runs of elements are one item; more than one only of short runs."""
    return min(samples, ITEM // run) if 2 * run <= ITEM else 1


def items_per_sample(channels: int, positions: int) -> int:
    """Items in the channels · positions elements that one sample gives to a statistic.

    A kernel cannot call plain functions, so the two above stand here again.
    """
    rows = 0 if positions > ITEM else min(channels, ITEM // positions)
    if rows:
        return (channels + rows - 1) // rows
    return channels * ((positions + ITEM - 1) // ITEM)


def row_width(channels: int) -> int:
    """Elements that count as one row: a multiple of the channels, and of 16 if they are few."""
    if channels >= NARROW:
        return channels
    width = channels
    while width % 16 or width < WIDE:
        width += channels
    return width


def rows_per_chunk(width: int) -> int:
    """Rows of a chunk."""
    return max(8, CHUNK // width)


def lines_per_chunk(lines: int) -> int:
    """Lines whose dweight and dbias are summed in their own type."""
    return max(8, min(128, (lines + 63) // 64))


def together(family: str, form: Form, num_threads: int) -> bool:
    """Whether all threads work on one unit or slice at a time, or each on its own.

    Together they wait for each other after every pass, so only if the last round of units would
    leave many idle. Sums are added in the same order either way.
    """
    units = form.slices * (form.groups if family == "planes" else 1)
    rounds = -(-units // num_threads)
    return num_threads > 1 and family != "lines" and 2 * rounds * num_threads > 3 * units


def is_streamed(family: str, form: Form, itemsize: int) -> bool:
    """Whether what a kernel writes at a time mostly fills whole lines of the cache.

    For rows it must do so always: they are written as they come, and a store around the caches to
    any other address ends the process.
    """
    if family == "planes":
        return form.positions * itemsize % 64 == 0 or form.positions >= 1024
    if family == "lines":
        return form.channels * itemsize % 64 == 0 or form.channels >= 1024
    slice_ = form.count * form.groups
    return (
        slice_ * itemsize % 64 == 0 and row_width(form.groups * form.channels) * itemsize % 64 == 0
    )


def scratch(family: str, direction: str, form: Form, num_threads: int) -> int:
    """Float64 numbers a kernel needs besides its tensors."""
    channels = form.groups * form.channels
    if family == "planes":
        if direction == "backward":
            return 2 * form.slices * form.samples * channels * pieces_per_row(form.positions)
        waits = together(family, form, num_threads)
        return 4 * form.samples * items_per_sample(form.channels, form.positions) if waits else 0
    if family == "lines":
        chunks = -(-form.slices // lines_per_chunk(form.slices))
        return 0 if direction == "forward" else (chunks + num_threads) * 2 * _padded(channels)
    width = row_width(channels)
    rows, rest = divmod(form.samples * form.positions * channels, width)
    chunks = -(-rows // rows_per_chunk(width)) + (rest > 0)
    teams = 1 if together(family, form, num_threads) else num_threads
    if direction == "forward":
        return _padded(width) * (4 * num_threads + teams * (2 * chunks + 3))
    own = _padded(width) * (2 * num_threads + teams * (2 * chunks + 6))
    return own + form.slices * 2 * channels


def _padded(width: int) -> int:
    """Elements of a row that ends with a whole vector."""
    return -(-width // 16) * 16
