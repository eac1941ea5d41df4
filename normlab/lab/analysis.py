"""What finished runs say: a result per run, groups over seeds, differences with intervals.

Reads run folders through `Run` only, and needs neither torch nor numpy.
"""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from normlab.lab.differences import Difference, half_width, paired, plural, quantile, welch
from normlab.lab.experiment import Experiment
from normlab.lab.norm_names import family
from normlab.lab.results import LAST_EPOCHS, Epoch, Result, read

if TYPE_CHECKING:
    from normlab.lab.runs import Run

__all__ = [
    "LAST_EPOCHS",
    "X_NAMES",
    "Analysis",
    "Difference",
    "Epoch",
    "Group",
    "Result",
    "Series",
    "analyse",
    "family",
    "plural",
    "quantile",
    "read",
    "telling",
    "welch",
]

X_NAMES = {"batch_size": "batch size", "norm_batch_size": "normalization batch"}
_ORDER = ("batch", "group", "layer", "instance")
_NO_EFFECT = {"probe", "shift"}  # fields that record more and change no result


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    results: tuple[Result, ...]

    @cached_property
    def errors(self) -> tuple[float, ...]:
        return tuple(r.error for r in self.results if r.error is not None)

    @cached_property
    def by_seed(self) -> dict[int, float]:
        return {r.experiment.seed: r.error for r in self.results if r.error is not None}

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.errors) if self.errors else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

    @property
    def half(self) -> float | None:
        """Half the 95 % interval of the mean over seeds; None for fewer than two."""
        return half_width(self.errors)

    @property
    def lost(self) -> Counter[str]:
        """Runs that are in no mean, by outcome."""
        return Counter(r.outcome for r in self.results if r.error is None)

    def average(self, key: Callable[[Result], float | None]) -> float | None:
        """Mean of one number over the counted runs that have it."""
        values = [v for r in self.results if r.error is not None and (v := key(r)) is not None]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Series:
    """One line of the figure: a norm, and what else was varied beside the batch size.

    Args:
        groups: by batch size; a flat series has one group, under None.
    """

    norm: str
    label: str
    others: tuple[Any, ...]
    groups: Mapping[int | None, Group]

    @property
    def flat(self) -> bool:
        """Its norm does not look at the batch, so that it was trained once for every size."""
        return None in self.groups

    def at(self, x: int | None) -> Group:
        return self.groups.get(None if self.flat else x, Group(()))


@dataclass(frozen=True)
class Analysis:
    """All runs in order: which batch size is the axis, one series per norm.

    Args:
        x_field: the field of Experiment on the axis.
        companions: fields that differ between compared runs though nothing tells their effect.
        repeated: runs left out because their setting and seed were already there.
        damaged: folder and reason of each run that could not be read.
        conversions: runs that started from another run, in no series; see conversions.py.
        last: epochs at the end whose median is a run's result.
    """

    x_field: str
    xs: tuple[int, ...]
    series: tuple[Series, ...]
    results: tuple[Result, ...]
    companions: tuple[str, ...] = ()
    repeated: tuple[Result, ...] = ()
    damaged: tuple[tuple[str, str], ...] = field(default=())
    conversions: tuple[Result, ...] = ()
    last: int = LAST_EPOCHS

    @property
    def is_about_conversions(self) -> bool:
        """Most runs started from another one, so that the others are there for their sake."""
        return 2 * len(self.conversions) > len(self.results)

    @property
    def x_name(self) -> str:
        return X_NAMES[self.x_field]

    def reference(self, series: Series) -> Series | None:
        """The batch norm that a series is compared with."""
        same = [s for s in self.series if s.others == series.others and family(s.norm) == "batch"]
        return None if not same or same[0] is series else same[0]

    def differences(self) -> list[tuple[Series, Series, int, Difference]]:
        """Every series against batch norm, wherever both have results."""
        return self._compared(lambda ours, theirs: welch(ours.errors, theirs.errors))

    def paired(self) -> list[tuple[Series, Series, int, Difference]]:
        """The same over the seeds that both have."""
        return self._compared(lambda ours, theirs: paired(ours.by_seed, theirs.by_seed))

    def _compared(
        self, compare: Callable[[Group, Group], Difference | None]
    ) -> list[tuple[Series, Series, int, Difference]]:
        found = []
        for series in self.series:
            reference = self.reference(series)
            if reference is None:
                continue
            for x in self.xs:
                difference = compare(series.at(x), reference.at(x))
                if difference:
                    found.append((series, reference, x, difference))
        return found


def analyse(
    runs: Iterable["Run"], damaged: Iterable[tuple[Any, str]] = (), *, last: int = LAST_EPOCHS
) -> Analysis:
    """Groups runs by norm and batch size; one that cannot be read joins the damaged ones.

    Args:
        last: epochs at the end whose median is a run's result.
    """
    results, unreadable = [], [(str(path), str(reason)) for path, reason in damaged]
    for run in runs:
        try:
            results.append(read(run, last))
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            unreadable.append((str(run.path), str(error) or type(error).__name__))
    return _grouped(results, tuple(unreadable), last)


def telling(settings: Sequence[Experiment], fields: Iterable[str]) -> list[str]:
    """As few of the fields as tell the settings apart that all of them do, the first preferred.

    >>> one, two = Experiment(data="mnist", epochs=3), Experiment(data="svhn", epochs=9)
    >>> telling([one, two], ["data", "epochs"])
    ['data']
    """
    order = [name for name in _fields() if name in set(fields)]
    kept = list(order)
    for name in reversed(order):
        rest = [f for f in kept if f != name]
        if _num_values(settings, rest) == _num_values(settings, kept):
            kept = rest
    return kept


def _grouped(everything: list[Result], damaged: tuple[tuple[str, str], ...], last: int) -> Analysis:
    results = [r for r in everything if r.experiment.source is None]
    settings = [r.experiment for r in results]
    varied = {f for f in _fields() if len({getattr(e, f) for e in settings}) > 1}
    x_field = "norm_batch_size" if "norm_batch_size" in varied else "batch_size"
    swept = {e.norm for e in settings if e.norm_batch_size}
    beside = _beside(settings)

    def x_of(e: Experiment) -> int | None:
        if x_field == "batch_size":
            return e.batch_size
        own = e.batch_size // e.accumulate if e.norm in swept else beside.get(e.batch_size)
        return e.norm_batch_size or own

    free = sorted(varied - {"seed", "norm", x_field})
    effective = [f for f in free if _splits(f, settings, x_of)]
    split = sorted(telling(settings, effective))
    tree: dict[tuple[str, tuple], dict[int | None, dict[int, Result]]] = {}
    repeated = []
    # Finished runs come first, so that a second attempt replaces a broken first one.
    for r in sorted(results, key=lambda r: (r.error is None, r.name, r.path)):
        key = (r.experiment.norm, tuple(getattr(r.experiment, f) for f in split))
        seeds = tree.setdefault(key, {}).setdefault(x_of(r.experiment), {})
        if seeds.setdefault(r.experiment.seed, r) is not r:
            repeated.append(r)
    series = [
        Series(
            norm=norm,
            label=" · ".join([norm, *(f"{f} {v}" for f, v in zip(split, others, strict=True))]),
            others=others,
            groups={
                x: Group(tuple(found[x][s] for s in sorted(found[x])))
                for x in sorted(found, key=lambda x: -1 if x is None else x)
            },
        )
        for (norm, others), found in tree.items()
    ]
    return Analysis(
        x_field=x_field,
        xs=tuple(sorted({x for s in series for x in s.groups if x is not None})),
        series=tuple(sorted(series, key=_rank)),
        results=tuple(sorted(everything, key=lambda r: (r.name, r.path))),
        companions=tuple(f for f in free if f not in effective),
        repeated=tuple(repeated),
        damaged=damaged,
        conversions=tuple(r for r in everything if r.experiment.source is not None),
        last=last,
    )


def _beside(settings: list[Experiment]) -> dict[int, int]:
    """The normalization batch that goes with each batch of SGD, where they are varied together.

    So a norm of single samples is set beside those of the batch it was trained with; {} where the
    batch of SGD stays the same, or has several normalization batches.
    """
    pairs = {(e.batch_size, e.norm_batch_size) for e in settings if e.norm_batch_size}
    sizes = {batch for batch, _ in pairs}
    return {b: n for b, n in pairs if n} if len(pairs) == len(sizes) > 1 else {}


def _fields() -> list[str]:
    return [f.name for f in dataclasses.fields(Experiment) if f.name not in _NO_EFFECT]


def _num_values(settings: Sequence[Experiment], fields: Sequence[str]) -> int:
    return len({tuple(getattr(e, f) for f in fields) for e in settings})


def _splits(name: str, settings: list[Experiment], x_of: Callable[[Experiment], Any]) -> bool:
    """Whether a field takes several values for one norm at one batch size."""
    pairs = {(e.norm, x_of(e), getattr(e, name)) for e in settings}
    return len(pairs) > len({pair[:2] for pair in pairs})


def _rank(series: Series) -> tuple:
    name = family(series.norm)
    place = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    option = series.norm.partition(":")[2]
    size = option.removeprefix("size=")
    number = int(size) if size.isdecimal() and len(size) < 7 else -1
    return place, option != "", size != option, number, series.norm, series.label
