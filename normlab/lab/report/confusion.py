"""Which classes are taken for which, norm beside norm, and the images most runs get wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normlab.lab.analysis import Analysis, Result, Series, plural
from normlab.lab.report.sections import Section
from normlab.lab.report.tables import Table, clean
from normlab.lab.results import Confusion

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_MAX_CLASSES = 20  # of a matrix on the page
_MAX_PAIRS = 5
_MAX_IMAGES = 15


@dataclass(frozen=True)
class _Summed:
    """The confusions of one norm at one batch size, added over seeds."""

    label: str
    x: int | None
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    num_runs: int


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """The most confused pairs of every norm, matrices, and the images that most runs get wrong."""
    found = _summed(a)
    if not found:
        return None
    shown = [table for table in (pairs(a), images(a)) if table.rows]
    folded = [matrix(s) for s in found if len(s.classes) <= _MAX_CLASSES]
    return Section("confusion", "Confusions", sentences(a), (), shown, folded=folded)


def sentences(a: Analysis) -> list[str]:
    """Whether norms confuse the same classes."""
    first = {s.label: top[0] for s in _summed(a) if (top := _pairs(s))}
    if not first:
        return []
    usual, count = Counter((true, guess) for _, true, guess, _ in first.values()).most_common(1)[0]
    said = f"Most often {usual[0]} is taken for {usual[1]}"
    if len(first) > 1:
        said += f", by {count} of {plural(len(first), 'norm')}"
    return [clean(f"{said}.", 1000)]


def pairs(a: Analysis) -> Table:
    """For each norm the classes it confuses most."""
    rows = [
        [s.label, _at(s), true, guess, str(count), f"{share:.1f}"]
        for s in _summed(a)
        for count, true, guess, share in _pairs(s)[:_MAX_PAIRS]
    ]
    columns = ["norm", a.x_name, "true class", "taken for", "images", "% of the class"]
    note = (
        f"The {_MAX_PAIRS} most frequent confusions of validation images after training, summed "
        "over seeds; at the smallest batch."
    )
    return Table("Most confused classes", columns, rows, note)


def matrix(s: _Summed) -> Table:
    """True class by predicted class."""
    rows = [[name, *map(str, row)] for name, row in zip(s.classes, s.counts)]
    at = "" if s.x is None else f" at {s.x}"
    note = (
        "Columns are the predicted classes; numbers are validation images after training, summed "
        f"over {plural(s.num_runs, 'run')}."
    )
    return Table(f"Confusion, {s.label}{at}", ["true class", *s.classes], rows, note)


def matrices(a: Analysis) -> list[Table]:
    """The matrices of all norms."""
    return [matrix(s) for s in _summed(a)]


def images(a: Analysis) -> Table:
    """Validation images among the surest mistakes of the most runs."""
    # an index means one image only where runs share their data
    by_data: dict[tuple, list[Result]] = {}
    for r in a.results:
        if r.confusion and r.error is not None:
            e = r.experiment
            key = e.data, e.validation, e.num_validation, r.confusion.classes
            by_data.setdefault(key, []).append(r)
    rows = []
    for (data, _, _, classes), results in by_data.items():
        seen: dict[tuple[int, int], Counter[int]] = {}
        for r in results:
            assert r.confusion is not None
            for m in r.confusion.mistakes:
                seen.setdefault((m.index, m.true), Counter())[m.predicted] += 1
        often = sorted(seen.items(), key=lambda item: (-item[1].total(), item[0]))
        for (index, true), guesses in often[:_MAX_IMAGES]:
            guess, _ = guesses.most_common(1)[0]
            count = f"{guesses.total()} of {len(results)}"
            rows.append([data, str(index), classes[true], classes[guess], count])
    columns = ["data", "validation image", "true class", "mostly taken for", "runs"]
    note = (
        "Images that are among the surest mistakes of most runs, of any norm: hard, or labelled "
        "wrongly. Numbers are places in the validation set, from 0."
    )
    return Table("Most confused images", columns, rows, note)


def _summed(a: Analysis) -> list[_Summed]:
    """Every norm at its smallest batch size that has confusions."""
    found = []
    for series in a.series:
        for x in sorted(series.groups, key=lambda x: -1 if x is None else x):
            added = _added(series, x)
            if added:
                found.append(added)
                break
    return found


def _added(series: Series, x: int | None) -> _Summed | None:
    runs = series.groups[x].results
    known = [r.confusion for r in runs if r.confusion and r.error is not None]
    if not known or len({c.classes for c in known}) > 1:
        return None
    return _Summed(series.label, x, known[0].classes, _sum(known), len(known))


def _sum(matrices: Sequence[Confusion]) -> tuple[tuple[int, ...], ...]:
    rows = zip(*(m.counts for m in matrices))
    return tuple(tuple(map(sum, zip(*of_class))) for of_class in rows)


def _pairs(s: _Summed) -> list[tuple[int, str, str, float]]:
    """Images, true and predicted class, and their share of the true class, most first."""
    found = [
        (count, s.classes[i], s.classes[j], 100 * count / sum(row))
        for i, row in enumerate(s.counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda pair: -pair[0])


def _at(s: _Summed) -> str:
    return "any" if s.x is None else str(s.x)
