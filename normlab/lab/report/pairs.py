"""Every norm against every other, seed by seed, with p-values for that many comparisons."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normlab.lab.analysis import Analysis, Series
from normlab.lab.differences import Difference, holm, paired, plural
from normlab.lab.report.sections import Section
from normlab.lab.report.sentences import signed
from normlab.lab.report.tables import Table, clean, interval

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_LEVEL = 0.05
_LEAD = (
    "Seed by seed, by the paired t-test; what is said of means elsewhere is by Welch's test, which "
    "makes nothing of shared seeds, and may judge otherwise."
)
_MAX_NAMED = 6  # pairs in a sentence
_MAX_ROWS = 30  # of a table that is read; a longer one is looked up
_MAX_SENTENCES = 60


@dataclass(frozen=True)
class Pair:
    """Two norms at one batch size.

    Args:
        x: the batch size; None where neither norm depends on it.
        difference: error of `series` minus that of `other`, over the seeds of both.
        p: of the paired t-test, adjusted by Holm for all pairs at this size; None without interval.
    """

    series: Series
    other: Series
    x: int | None
    difference: Difference
    p: float | None

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < _LEVEL

    @property
    def verdict(self) -> str:
        if self.p is None:
            return "unknown"
        if not self.significant:
            return "not significant"
        return "better" if self.difference.value < 0 else "worse"

    @property
    def words(self) -> str:
        """The pair as a sentence's part, the better norm first if that is certain."""
        d, first, second = self.difference, self.series.label, self.other.label
        if d.half is None or self.p is None:
            return f"{first} and {second} differ by {signed(d.value)} points, without an interval"
        if not self.significant:
            apart = f"{signed(d.value)} ± {d.half:.1f} points, p {_p(self.p)}"
            return f"no significant difference between {first} and {second} ({apart})"
        if d.value > 0:
            first, second = second, first
        apart = f"{abs(d.value):.1f} ± {d.half:.1f} points better than {second}"
        return f"{first} is {apart} (p {_p(self.p)})"


def pairs(a: Analysis) -> list[Pair]:
    """All pairs of norms in the same setting that have a seed in common, by batch size."""
    found = []
    for x in (*a.xs, None):
        compared = []
        for series, other in itertools.combinations(a.series, 2):
            fitting = (series.flat and other.flat) == (x is None)
            if fitting and series.others == other.others:
                d = paired(series.at(x).by_seed, other.at(x).by_seed)
                if d is not None:
                    compared.append((series, other, x, d))
        tested = [d.p for *_, d in compared if d.p is not None]
        adjusted = iter(holm(tested))
        found += [Pair(*row, None if row[3].p is None else next(adjusted)) for row in compared]
    return found


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """What differs at each batch size, and every pair; nothing while no pair has an interval."""
    found = pairs(a)
    if all(pair.p is None for pair in found):
        return None
    made = table(a)
    short = len(made.rows) <= _MAX_ROWS
    return Section(
        "pairs",
        "Every norm against every other",
        sentences=said(a),
        tables=[made] if short else [],
        folded=[] if short else [made],
        more=[_sentence(a, p) for p in found] if len(found) <= _MAX_SENTENCES else [],
    )


def table(a: Analysis) -> Table:
    """A row for each pair at each batch size; empty while no pair has an interval."""
    found = pairs(a)
    rows = [
        [
            p.series.label,
            p.other.label,
            "any" if p.x is None else str(p.x),
            str(p.difference.num_seeds[0]),
            signed(p.difference.value),
            interval(p.difference),
            "—" if p.p is None else _p(p.p),
            p.verdict,
        ]
        for p in found
    ]
    tested = any(p.p is not None for p in found)
    columns = ["norm", "against", a.x_name, "seeds", "difference", "95 % interval", "p", "verdict"]
    note = (
        "Validation error of the norm minus that of the other, seed by seed, in points: below 0 is "
        "better. Interval of the paired t-test, each for itself; p and verdict are adjusted by "
        f"Holm's method for all pairs at the same {a.x_name}, so an interval without 0 can be no "
        "finding."
    )
    return Table("Every norm against every other, seed by seed", columns, rows * tested, note)


def said(a: Analysis) -> list[str]:
    """What is compared how, and what came of it."""
    found = sentences(a)
    return [_LEAD, *found] if found else []


def sentences(a: Analysis) -> list[str]:
    """For each batch size, which norms differ, or that none do."""
    found = [p for p in pairs(a) if p.p is not None]
    lines = []
    for x in dict.fromkeys(p.x for p in found):
        here = [p for p in found if p.x == x]
        sure = sorted((p for p in here if p.significant), key=lambda p: -abs(p.difference.value))
        if not sure:
            lines.append(
                f"{_at(a, x)} no significant difference {_between(here)} "
                f"({plural(len(here), 'pair')}, {_seeds(here)})."
            )
            continue
        named = "; ".join(p.words for p in sure[:_MAX_NAMED])
        count = f"{len(sure)} of {plural(len(here), 'pair')} differ{'s' * (len(sure) == 1)}"
        largest = ", the largest" if len(sure) > _MAX_NAMED else ""
        rest = "" if len(sure) == len(here) else " The others show no significant difference."
        lines.append(f"{_at(a, x)} {count} significantly ({_seeds(here)}){largest}: {named}.{rest}")
    return [clean(text, 5000) for text in lines]


def _sentence(a: Analysis, p: Pair) -> str:
    return clean(f"{_at(a, p.x)} {p.words}; {p.difference.seeds}.", 1000)


def _at(a: Analysis, x: int | None) -> str:
    return f"At any {a.x_name}," if x is None else f"At a {a.x_name} of {x},"


def _between(found: Sequence[Pair]) -> str:
    if len({p.series.others for p in found}) > 1:
        return "within any setting"
    labels = list(dict.fromkeys(s.label for p in found for s in (p.series, p.other)))
    if len(labels) == 2:
        return f"between {labels[0]} and {labels[1]}"
    return f"between any two of {', '.join(labels[:-1])} and {labels[-1]}"


def _seeds(found: Iterable[Pair]) -> str:
    counts = sorted({p.difference.num_seeds[0] for p in found})
    few, many = counts[0], counts[-1]
    return f"{plural(few, 'seed')} each" if few == many else f"{few} to {many} seeds each"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
