"""The tables of a comparison as plain text cells, for the page and for the terminal alike."""

import dataclasses
import functools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from normlab.lab.analysis import Analysis, Difference, Group, Result, Series, family
from normlab.lab.experiment import Experiment
from normlab.lab.norm_names import division
from normlab.lab.published import SOURCES
from normlab.lab.published import published as published_under
from normlab.lab.report.sentences import lost_runs, sentence, signed, spread

_NUMERIC = re.compile(
    r"(([−+]?\d[\d,.]*( ± [\d.]+)?( \(\d+\))?|—)(; .+)?|[−+]?[\d.]+ to [−+]?[\d.]+|)"
)


@dataclass(frozen=True)
class Table:
    """A caption, a heading per column, rows of as many cells, and what to know when reading it.

    All text is cleaned: control characters and the like are shown as escapes.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)
        object.__setattr__(self, "title", clean(self.title))
        object.__setattr__(self, "columns", tuple(map(clean, self.columns)))
        object.__setattr__(self, "rows", tuple(tuple(map(clean, row)) for row in self.rows))

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it holds numbers only, which are set flush right."""
        return tuple(all(_NUMERIC.fullmatch(c) for c in column) for column in zip(*self.rows))


def clean(text: str, limit: int = 300) -> str:
    """Text from outside, safe to show: control and direction characters escaped, ~ for home."""
    home = _home()
    text = text if home == "/" else text.replace(f"{home}/", "~/")
    if text.isprintable():
        return text if len(text) <= limit else f"{text[:limit]}…"
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return shown if len(text) <= limit else f"{shown[:limit]}…"


@functools.cache
def _home() -> str:
    return str(Path.home())


def results(a: Analysis) -> list[Table]:
    """The tables that answer the question, the most important first; empty ones are left out."""
    tables = (errors(a), differences(a), groups(a), cost(a))
    return [table for table in tables if table.rows]


def errors(a: Analysis) -> Table:
    """Validation error by norm and batch size."""
    some_flat = any(s.flat for s in a.series)
    columns = [*map(str, a.xs), *(["any"] if some_flat else [])]
    rows = []
    for s in a.series:
        swept = [cell(a, s.groups.get(x)) for x in a.xs]
        rows.append([s.label, *swept, *([cell(a, s.groups.get(None))] if some_flat else [])])
    note = f"Mean ± standard deviation over {_usual(a)} seeds; another number of seeds in brackets."
    if some_flat:
        note += f" any: the norm does not depend on the {a.x_name} and was trained once."
    return Table(f"Validation error in % by {a.x_name}", ["norm", *columns], rows, note)


def differences(a: Analysis) -> Table:
    """Every norm against batch norm at the same batch size."""
    rows = [
        [s.label, str(x), signed(d.value), interval(d), effect(d), verdict(d)]
        for s, _, x, d in a.differences()
    ]
    columns = ["norm", a.x_name, "difference", "95 % interval", "in std", "verdict"]
    note = (
        "Validation error minus that of batch norm, in points: below 0 is better. Interval by "
        "Welch's t. in std: difference / pooled standard deviation over seeds. Each interval "
        "stands for itself: of twenty, one misses by chance."
    )
    return Table("Difference to batch norm", columns, rows, note)


def in_words(a: Analysis) -> list[str]:
    """The rows of `differences` as sentences."""
    return [clean(sentence(s.label, r.label, x, d)) for s, r, x, d in a.differences()]


def paired(a: Analysis) -> Table:
    """Every norm against batch norm, seed by seed."""
    rows = [
        [s.label, str(x), str(d.num_seeds[0]), signed(d.value), interval(d), verdict(d)]
        for s, _, x, d in a.paired()
        if d.num_seeds[0] > 1
    ]
    columns = ["norm", a.x_name, "seeds", "difference", "95 % interval", "verdict"]
    note = (
        "The same difference over the seeds that both have: runs of one seed start from the same "
        "weights and see the same images, so what the seed does to both drops out. Interval of "
        "the paired t-test; each stands for itself."
    )
    return Table("Difference to batch norm, seed by seed", columns, rows, note)


def last_epochs(a: Analysis) -> Table:
    """How much a result depends on the epochs it is taken from."""
    counts = [k for k in (1, 3, 5, 10) if any(len(r.epochs) > k for r in a.results)]
    rows = []
    for s in a.series:
        for x, group in s.groups.items():
            means = [group.average(partial(Result.error_of_last, count=k)) for k in counts]
            means.append(group.average(lambda r: r.lowest_error))
            if any(m is not None for m in means[:-1]):
                cells = ["—" if m is None else f"{m:.2f}" for m in means]
                rows.append([s.label, "any" if x is None else str(x), *cells])
    columns = ["norm", a.x_name, *(f"last {k}" for k in counts), "best epoch"]
    note = (
        "Median validation error in % over so many last epochs, mean over seeds. The best epoch "
        "is chosen by what it is judged by, so it flatters, most where the error jumps. "
        f"Everywhere else results are over the last {a.last}."
    )
    return Table("Results by the epochs they are taken from", columns, rows if counts else [], note)


def groups(a: Analysis) -> Table:
    """From one group (layer norm) to one channel per group (instance norm)."""
    title = "How channels are divided into groups"
    found = [(d, s) for s in a.series if (d := division(s.norm))]
    if len(found) < 2:
        return Table(title, ["norm"], [])
    found.sort(key=lambda row: (row[0].order, ":" in row[1].norm))
    xs = a.xs if any(not s.flat for _, s in found) else (None,)
    heads = ["error" if x is None else f"error at {x}" for x in xs]
    rows = [[s.label, d.words, *[cell(a, s.at(x)) for x in xs]] for d, s in found]
    note = "Validation error in %, mean ± standard deviation over seeds."
    return Table(title, ["norm", "channels", *heads], rows, note)


def published() -> Table:
    """The paper's own numbers for the division into groups."""
    by_groups, by_size = published_under("gn-table3a"), published_under("gn-table3b")
    rows = [
        [g.what.split()[0], f"{g.values[0]:.1f}", c.what.split()[0], f"{c.values[0]:.1f}"]
        for g, c in zip(by_groups.numbers, by_size.numbers)
    ]
    note = (
        "Top-1 validation error in %, 32 images per worker, 100 epochs. 1 group is layer norm, "
        f"1 channel per group instance norm. From {SOURCES[by_groups.source]}, table 3; "
        "another task than the one above, so compare the shape, not the numbers."
    )
    columns = ["groups", "error", "channels per group", "error"]
    return Table("Published: ImageNet, ResNet-50", columns, rows, note)


def cost(a: Analysis) -> Table:
    """Time, memory and parameters of each norm."""
    counted = [r for s in a.series for g in s.groups.values() for r in g.results]
    shown = [c for c in _COSTS if c.always or any(c.value(r) is not None for r in counted)]
    rows = []
    for s in a.series:
        for x, group in s.groups.items():
            base = {"ratio": _plain_seconds(a, s, x)}
            cells = [c.cell(group, base.get(c.heading)) for c in shown]
            if any(cell != "—" for cell in cells):
                rows.append([s.label, "any" if x is None else str(x), *cells])
    note = "Medians over epochs and seeds. " + " ".join(
        f"{c.heading}: {c.meaning}." for c in shown if c.meaning
    )
    note += (
        " Runs go side by side on one machine, so times are noisy and small ratios mean nothing."
    )
    return Table("Time and memory", ["norm", a.x_name, *(c.heading for c in shown)], rows, note)


@dataclass(frozen=True)
class _Cost:
    """A column of the costs."""

    heading: str
    field: str  # of Result
    form: str
    meaning: str = ""
    unit: float = 1
    always: bool = True

    def value(self, r: Result) -> float | None:
        return getattr(r, self.field)

    def cell(self, group: Group, base: float | None) -> str:
        """— where nothing was measured; a ratio also where there is nothing to compare with."""
        value = median(group, self.field)
        if value is None or (self.heading == "ratio" and not base):
            return "—"
        return format(value / (base or self.unit), self.form)


_COSTS = (
    _Cost("seconds", "seconds", "#.3g", "for 1,000 training images"),
    _Cost("ratio", "seconds", ".2f", "to batch norm at the same batch size"),
    _Cost("ms/step", "seconds_step", "#.3g", "for one update of the weights", 1e-3, always=False),
    _Cost("MB", "bytes_saved", "#.3g", "kept for the backward pass, per image", 1e6),
    _Cost("MB/step", "bytes_saved_step", "#.3g", "the same for all images of a step", 1e6),
    _Cost(
        "peak MB",
        "bytes_peak",
        "#.3g",
        "most memory held at once, on a GPU by all of the training, on the CPU by the network and "
        "one forward and backward pass",
        1e6,
        always=False,
    ),
    _Cost("parameters", "num_parameters", ",.0f"),
)


def setting(a: Analysis, versions: Mapping[str, str]) -> Table:
    """Every field of the experiments: equal for all, or the values it took."""
    rows = []
    for name in (f.name for f in dataclasses.fields(Experiment)):
        values = {_value(getattr(r.experiment, name)) for r in a.results}
        rows.append([name, ", ".join(sorted(values, key=_natural)), _role(a, name, len(values))])
    rows += [[name, value, ""] for name, value in versions.items()]
    return Table("Setting", ["field", "value", ""], rows if a.results else [])


def runs(a: Analysis) -> Table:
    """Every run, so that each number on the page can be traced to a folder."""
    left_out = {r.path for r in a.repeated}
    rows = [
        [
            r.name,
            "repeated, left out" if r.path in left_out else r.outcome,
            "—" if r.error is None else f"{r.error:.2f}",
            "—" if r.train_error is None else f"{r.train_error:.2f}",
            str(len(r.epochs)),
            r.path,
        ]
        for r in a.results
    ]
    columns = ["run", "state", "validation error", "training error", "epochs", "folder"]
    note = f"Errors in %: median over the last {a.last} epochs. Only counted runs are in a mean."
    return Table("Runs", columns, rows, note)


def unfinished(a: Analysis) -> Table:
    """Runs without a result, and why."""
    rows = [[r.name, r.outcome, r.cause or "—", r.path] for r in a.results if r.error is None]
    note = "These runs are in no mean and no interval."
    return Table("Runs without a result", ["run", "state", "cause", "folder"], rows, note)


def damaged(a: Analysis) -> Table:
    """Folders that could not be read."""
    return Table("Damaged folders", ["folder", "reason"], a.damaged)


def _usual(a: Analysis) -> int:
    """The number of seeds most groups have."""
    counts = [len(g.errors) for s in a.series for g in s.groups.values() if g.errors]
    return statistics.mode(counts) if counts else 0


def cell(a: Analysis, group: Group | None) -> str:
    if group is None or not group.results:
        return "—" if group is not None else ""
    text = spread(group)
    if group.errors and len(group.errors) != _usual(a):
        text += f" ({len(group.errors)})"
    lost = lost_runs(group)
    return f"{text}; {lost}" if lost else text


def interval(d: Difference) -> str:
    if d.half is None:
        return "—"
    return f"{signed(d.value - d.half)} to {signed(d.value + d.half)}"


def effect(d: Difference) -> str:
    return "—" if d.effect is None else signed(d.effect)


def verdict(d: Difference) -> str:
    if d.half is None:
        return "unknown"
    if not d.significant:
        return "not significant"
    return "better" if d.value < 0 else "worse"


def median(group: Group, name: str) -> float | None:
    values = [v for r in group.results if (v := getattr(r, name)) is not None]
    return statistics.median(values) if values else None


def _plain_seconds(a: Analysis, s: Series, x: int | None) -> float | None:
    """Seconds of batch norm at the same batch size; for a flat series those at the largest x."""
    reference = s if family(s.norm) == "batch" else a.reference(s)
    if reference is None:
        return None
    known = [k for k in reference.groups if k is not None]
    return median(reference.at(x if x is not None else max(known, default=None)), "seconds")


def _role(a: Analysis, name: str, count: int) -> str:
    if count < 2:
        return ""
    if name == a.x_field:
        return "compared, the axis"
    return "differs, effect unknown" if name in a.companions else "compared"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _natural(text: str) -> tuple[float, str]:
    return (float(text), "") if re.fullmatch(r"\d+(\.\d+)?", text) else (float("inf"), text)
