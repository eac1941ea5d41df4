"""Rows of a benchmark as a table for people, and what they say in words."""

from collections.abc import Sequence

from normlab.lab.bench.results import Row
from normlab.lab.bench.timing import TRIES
from normlab.lab.report.tables import Table, clean

_RATIO_NOTE = "of torch's: median of ratios within a round, to torch's own norm of that kind."
_NORM_NOTE = (
    "copies: time in copies of the tensor. GB/s: what must be moved at least (2 accesses of the "
    f"tensor forward, 3 backward, one more each for a residual), per second. {_RATIO_NOTE} saved: "
    "kept for the backward pass, parameters aside."
)
_NETWORK_NOTE = (
    "as written: the network with torch's batch norm; of written: median of ratios to its step, "
    "within a round. norms alone: the norm layers, one after the "
    f"other, without the rest of the network. {_RATIO_NOTE} saved: kept for the backward pass, "
    "parameters aside."
)


def table(rows: Sequence[Row]) -> Table:
    """The figures of one measurement, under no title: `heading` would be wider than they are."""
    return _of_network(rows) if rows[0].model else _of_norm(rows)


def heading(rows: Sequence[Row]) -> str:
    """What was measured, in which setting."""
    first = rows[0]
    fused = [f"activation {first.activation}"] if first.activation != "none" else []
    fused += ["residual"] if first.residual else []
    what = first.model or ", ".join([first.norm, *fused])
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    where = f"{first.device}, {threads}" if first.device == "cpu" else first.device
    shown = f"{first.shape} {first.dtype} {first.memory_format}"
    return clean(f"{what}: {shown}, {where}, {first.passes}")


def legend(rows: Sequence[Row]) -> str:
    """What the columns of the table mean."""
    return _NETWORK_NOTE if rows[0].model else _NORM_NOTE


def sentences(rows: Sequence[Row]) -> list[str]:
    """Whether ours is faster or slower, and what could not be measured."""
    said = []
    for row in rows:
        if row.note:
            said.append(f"{row.candidate} is left out: {row.note}.")
        if row.candidate.startswith("normlab"):
            said += _against_torch(row)
            said += _against_compiled(row, rows)
    if rows[0].num_disturbed:
        said.append(
            f"In {rows[0].num_disturbed} samples the process had to wait for a core at each of "
            f"{TRIES} tries; the one that waited least was kept."
        )
    if rows[0].num_disturbed is None:
        said.append("This system does not tell whether a sample was disturbed; none was rejected.")
    return said


def _of_norm(rows: Sequence[Row]) -> Table:
    columns = ["by", "ms", "copies", "GB/s", "of torch's", "saved MB"]
    cells = [
        [
            row.candidate,
            _number(row.milliseconds),
            _number(row.copies),
            _number(row.gb_per_second),
            _number(row.ratio_to_torch),
            _megabytes(row.bytes_saved),
        ]
        for row in rows
    ]
    return Table("", columns, cells)


def _of_network(rows: Sequence[Row]) -> Table:
    columns = ["norm", "by", "step ms", "of written", "of torch's", "norms alone ms", "saved MB"]
    cells = [
        [
            row.norm,
            row.candidate,
            _number(row.milliseconds),
            _number(row.ratio_to_written),
            _number(row.ratio_to_torch),
            _number(row.norms_milliseconds),
            _megabytes(row.bytes_saved),
        ]
        for row in rows
    ]
    return Table("", columns, cells)


def _against_torch(row: Row) -> list[str]:
    if row.ratio_to_torch is None or row.ratio_low is None or row.ratio_high is None:
        return [f"torch has no {row.norm} norm to compare with."]
    ours = row.candidate.replace("normlab", "our")
    what = f"a step with {ours} {row.norm} norm" if row.model else f"{ours} {row.norm} norm"
    whose = "the step with torch's" if row.model else "torch's"
    ratio = f"{row.ratio_to_torch:.2f} times as long as {whose}"
    quartiles = f"quartiles {row.ratio_low:.2f} and {row.ratio_high:.2f}"
    if row.ratio_low > 1:
        return [f"Slower: {what} takes {ratio} ({quartiles})."]
    if row.ratio_high < 1:
        return [f"Faster: {what} takes {ratio} ({quartiles})."]
    return [f"No clear difference: {what} takes {ratio} ({quartiles})."]


def _against_compiled(row: Row, rows: Sequence[Row]) -> list[str]:
    for other in rows:
        compiled = other.ratio_to_torch
        if other.candidate != "torch.compile" or compiled is None or row.ratio_to_torch is None:
            continue
        if compiled < row.ratio_to_torch:
            return [
                f"torch.compile is faster than ours here: {compiled:.2f} of the time of torch's "
                f"uncompiled, ours {row.ratio_to_torch:.2f}."
            ]
    return []


def _number(value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _megabytes(size: int | None) -> str:
    return "—" if size is None else _number(size / 1e6)
