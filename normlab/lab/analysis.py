"""What finished runs say: a result per run, groups over seeds, differences with intervals.

Reads run folders through `Run` only, and needs neither torch nor numpy.
"""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from normlab.lab.experiment import Experiment

if TYPE_CHECKING:
    from normlab.lab.runs import Run

LAST_EPOCHS = 3  # a run's result is the median over these; the paper takes 5 of 100
X_NAMES = {"batch_size": "batch size", "norm_batch_size": "normalization batch"}
_FAMILIES = {"bn": "batch", "torch_bn": "batch", "gn": "group", "ln": "layer", "in": "instance"}
_ORDER = ("batch", "group", "layer", "instance")

# Two-sided 95 % quantiles of Student's t for 1 … 30 degrees of freedom, then for some more:
# NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_T95_BEYOND = {1000: 1.962, 120: 1.980, 60: 2.000, 40: 2.021, 31: 2.042}


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured; None where the number is missing or not finite."""

    samples: int
    train_error: float | None  # percent
    validation_error: float | None  # percent


@dataclass(frozen=True)
class Result:
    """One run: its setting, how it ended and its numbers; None where there is none."""

    name: str
    path: str
    experiment: Experiment
    state: str
    cause: str
    epochs: tuple[Epoch, ...]
    error: float | None  # percent, validation; None unless the run finished
    train_error: float | None  # percent
    seconds: float | None  # per 1,000 training images
    bytes_saved: float | None  # for the backward pass, per image
    num_parameters: int | None
    num_train: int | None
    num_validation: int | None

    @property
    def outcome(self) -> str:
        """`counted`, or why the run is in no mean."""
        if self.error is not None:
            return "counted"
        return "no result" if self.state == "finished" else self.state


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    results: tuple[Result, ...]

    @cached_property
    def errors(self) -> tuple[float, ...]:
        return tuple(r.error for r in self.results if r.error is not None)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.errors) if self.errors else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

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
class Difference:
    """Mean of one group minus mean of another; negative is better.

    Args:
        half: half the width of the 95 % interval of Welch's t; None where seeds show no spread.
        effect: the difference in units of the pooled standard deviation over seeds.
    """

    value: float
    half: float | None
    effect: float | None
    num_seeds: tuple[int, int]

    @property
    def significant(self) -> bool:
        return self.half is not None and abs(self.value) > self.half

    @property
    def seeds(self) -> str:
        first, second = self.num_seeds
        if first == second:
            return f"{plural(first, 'seed')} each"
        return f"{first} and {plural(second, 'seed')}"


@dataclass(frozen=True)
class Analysis:
    """All runs in order: which batch size is the axis, one series per norm.

    Args:
        x_field: the field of Experiment on the axis.
        companions: fields that differ between compared runs though nothing tells their effect.
        repeated: runs left out because their setting and seed were already there.
        damaged: folder and reason of each run that could not be read.
    """

    x_field: str
    xs: tuple[int, ...]
    series: tuple[Series, ...]
    results: tuple[Result, ...]
    companions: tuple[str, ...] = ()
    repeated: tuple[Result, ...] = ()
    damaged: tuple[tuple[str, str], ...] = field(default=())

    @property
    def x_name(self) -> str:
        return X_NAMES[self.x_field]

    def reference(self, series: Series) -> Series | None:
        """The batch norm that a series is compared with."""
        same = [s for s in self.series if s.others == series.others and family(s.norm) == "batch"]
        return None if not same or same[0] is series else same[0]

    def differences(self) -> list[tuple[Series, Series, int, Difference]]:
        """Every series against batch norm, wherever both have results."""
        found = []
        for series in self.series:
            reference = self.reference(series)
            if reference is None:
                continue
            for x in self.xs:
                difference = welch(series.at(x).errors, reference.at(x).errors)
                if difference:
                    found.append((series, reference, x, difference))
        return found


def analyse(runs: Iterable["Run"], damaged: Iterable[tuple[Any, str]] = ()) -> Analysis:
    """Groups runs by norm and batch size; one that cannot be read joins the damaged ones."""
    results, unreadable = [], [(str(path), str(reason)) for path, reason in damaged]
    for run in runs:
        try:
            results.append(read(run))
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            unreadable.append((str(run.path), str(error) or type(error).__name__))
    return _grouped(results, tuple(unreadable))


def read(run: "Run") -> Result:
    """The numbers of one run's folder."""
    events, status, experiment = run.events(), run.status, run.experiment
    start: dict[str, Any] = next((e for e in events if e.get("event") == "start"), {})
    epochs = [e for e in events if e.get("event") == "epoch"]
    state = str(status.get("state", "unknown"))
    saved = _number(start, "bytes_saved")
    return Result(
        name=experiment.name,
        path=str(run.path),
        experiment=experiment,
        state=state,
        cause=str(status.get("cause") or ""),
        epochs=tuple(_epoch(e) for e in epochs),
        error=_last(epochs, "validation_error") if state == "finished" else None,
        train_error=_last(epochs, "train_error"),
        seconds=_seconds(epochs),
        bytes_saved=None
        if saved is None
        else saved * experiment.accumulate / experiment.batch_size,
        num_parameters=_whole(start, "num_parameters"),
        num_train=_whole(start, "num_train"),
        num_validation=_whole(start, "num_validation"),
    )


def welch(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """Mean of a minus mean of b, with Welch's interval; None if one of them is empty.

    The fractional degrees of freedom are rounded down, which widens the interval.
    """
    if not a or not b:
        return None
    value, seeds = statistics.fmean(a) - statistics.fmean(b), (len(a), len(b))
    if min(seeds) < 2:
        return Difference(value, None, None, seeds)
    var_a, var_b = statistics.variance(a), statistics.variance(b)
    if var_a == var_b == 0:
        return Difference(value, None, None, seeds)
    from_a, from_b = var_a / len(a), var_b / len(b)
    freedom = (from_a + from_b) ** 2 / (from_a**2 / (len(a) - 1) + from_b**2 / (len(b) - 1))
    pooled = ((len(a) - 1) * var_a + (len(b) - 1) * var_b) / (len(a) + len(b) - 2)
    half = quantile(freedom) * math.sqrt(from_a + from_b)
    return Difference(value, half, value / math.sqrt(pooled), seeds)


def quantile(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's t for at least one degree of freedom."""
    whole = math.floor(freedom + 1e-9)
    if whole <= len(_T95):
        return _T95[max(whole, 1) - 1]
    return next(t for least, t in _T95_BEYOND.items() if whole >= least)


def family(norm: str) -> str:
    """The norm without its options, under its long name."""
    name = norm.partition(":")[0]
    return _FAMILIES.get(name, name)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _grouped(results: list[Result], damaged: tuple[tuple[str, str], ...]) -> Analysis:
    settings = [r.experiment for r in results]
    varied = {f for f in _fields() if len({getattr(e, f) for e in settings}) > 1}
    x_field = "norm_batch_size" if "norm_batch_size" in varied else "batch_size"
    swept = {e.norm for e in settings if e.norm_batch_size}

    def x_of(e: Experiment) -> int | None:
        if x_field == "batch_size":
            return e.batch_size
        return e.norm_batch_size or (e.batch_size // e.accumulate if e.norm in swept else None)

    free = sorted(varied - {"seed", "norm", x_field})
    split = [f for f in free if _splits(f, settings, x_of)]
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
        results=tuple(sorted(results, key=lambda r: (r.name, r.path))),
        companions=tuple(f for f in free if f not in split),
        repeated=tuple(repeated),
        damaged=damaged,
    )


def _fields() -> list[str]:
    return [f.name for f in dataclasses.fields(Experiment)]


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


def _epoch(event: Mapping[str, Any]) -> Epoch:
    errors = _number(event, "train_error"), _number(event, "validation_error")
    return Epoch(_whole(event, "samples") or 0, *errors)


def _number(event: Mapping[str, Any], key: str) -> float | None:
    value = event.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _whole(event: Mapping[str, Any], key: str) -> int | None:
    value = _number(event, key)
    return None if value is None else int(value)


def _last(epochs: list[dict[str, Any]], key: str) -> float | None:
    """Median over the last epochs; None if one of them has no number."""
    values = [_number(e, key) for e in epochs[-LAST_EPOCHS:]]
    numbers = [v for v in values if v is not None]
    return statistics.median(numbers) if numbers and len(numbers) == len(values) else None


def _seconds(epochs: list[dict[str, Any]]) -> float | None:
    """Median over the epochs of the seconds for 1,000 training images."""
    seen, found = 0.0, []
    for event in epochs:
        samples, seconds = _number(event, "samples"), _number(event, "seconds_train")
        if samples is not None and samples > seen:
            if seconds is not None and seconds > 0:
                found.append(1000 * seconds / (samples - seen))
            seen = samples
    return statistics.median(found) if found else None
