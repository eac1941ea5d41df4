"""How channels are divided into groups, and which part of a batch is normalized together."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from normlab.lab.analysis import Analysis, Group, Result, Series
from normlab.lab.norm_names import Division, division
from normlab.lab.report.sections import Section
from normlab.lab.report.tables import Table, cell, published

if TYPE_CHECKING:
    from normlab.lab.runs import Run


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Error by number of groups and by channels per group, beside the paper's numbers."""
    ours = [table for table in (by_groups(a), by_size(a)) if table.rows]
    if not ours:
        return None
    return Section("groups", "Groups", tables=[*ours, published()])


def batches(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Normalization batch against the batch of SGD, where both were varied."""
    tables = matrices(a)
    if not tables:
        return None
    said = (
        "Down a column only the images that share statistics change, along a row only the "
        "images per step of the optimizer."
    )
    return Section("batches", "Normalization batch and SGD batch", sentences=[said], tables=tables)


def by_groups(a: Analysis) -> Table:
    """From many groups to one, which is layer norm."""
    found = _found(a, lambda d: d.num_groups)
    names = {1: "1 (layer norm)"}
    return _table(a, "Error by number of groups", "groups", found, names)


def by_size(a: Analysis) -> Table:
    """From many channels per group to one, which is instance norm."""
    found = _found(a, lambda d: d.group_size)
    names = {1: "1 (instance norm)"}
    return _table(a, "Error by channels per group", "channels per group", found, names)


def _found(a: Analysis, key: Callable[[Division], int | None]) -> list[tuple[int, Series]]:
    """The series of one table, the largest number first; nothing if there is but one number."""
    divided = [
        (number, s) for s in a.series if (d := division(s.norm)) and (number := key(d)) is not None
    ]
    if len({number for number, _ in divided}) < 2:
        return []
    return sorted(divided, key=lambda row: -row[0])


def _table(
    a: Analysis, title: str, heading: str, found: list[tuple[int, Series]], names: dict[int, str]
) -> Table:
    xs = a.xs if any(not s.flat for _, s in found) else (None,)
    heads = ["error" if x is None else f"error at {x}" for x in xs]
    rows = [
        [names.get(number, str(number)), s.label, *(cell(a, s.at(x)) for x in xs)]
        for number, s in found
    ]
    note = (
        "Validation error in %, mean ± standard deviation over seeds. A layer whose channels do "
        "not divide by 16 takes the nearest divisor where the norm is group without a number."
    )
    return Table(title, [heading, "norm", *heads], rows, note)


def matrices(a: Analysis) -> list[Table]:
    """For each norm that shares statistics in a batch: normalization batch by SGD batch."""
    found: dict[str, dict[tuple[int, int], list[Result]]] = {}
    repeated = {r.path for r in a.repeated}
    swept = {r.experiment.norm for r in _own(a) if r.experiment.norm_batch_size}
    for r in _own(a):
        e = r.experiment
        if e.norm in swept and r.path not in repeated:
            at = e.norm_batch_size or e.batch_size // e.accumulate, e.batch_size
            found.setdefault(_label(a, r.path, e.norm), {}).setdefault(at, []).append(r)
    made = []
    for label, cells in found.items():
        ours, theirs = sorted({n for n, _ in cells}), sorted({b for _, b in cells})
        if len(ours) < 2 or len(theirs) < 2:
            continue
        groups = {at: Group(tuple(results)) for at, results in cells.items()}
        rows = [[str(n), *(cell(a, groups.get((n, b))) for b in theirs)] for n in ours]
        made.append(
            Table(
                f"{label}: error by normalization batch and SGD batch",
                ["normalization batch", *(f"SGD batch {b}" for b in theirs)],
                rows,
                "Validation error in %, mean ± standard deviation over seeds. Empty: not run, or "
                "not possible, for the normalization batch is a part of the other.",
            )
        )
    return made


def _own(a: Analysis) -> list[Result]:
    """Runs that are no conversions."""
    return [r for r in a.results if r.experiment.source is None]


def _label(a: Analysis, path: str, norm: str) -> str:
    """The norm and what else was varied, the batch size of SGD left out."""
    for s in a.series:
        if any(r.path == path for g in s.groups.values() for r in g.results):
            parts = s.label.split(" · ")
            return " · ".join(p for p in parts if not p.startswith("batch_size "))
    return norm
