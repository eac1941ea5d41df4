"""The tables of a comparison as plain text cells, for the page and for the terminal alike."""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from normlab.lab.analysis import Analysis, Difference, Group, Series, family
from normlab.lab.experiment import Experiment
from normlab.lab.report.sentences import lost_runs, sentence, signed, spread

_NUMERIC = re.compile(
    r"(([−+]?\d[\d,.]*( ± [\d.]+)?( \(\d+\))?|—)(; .+)?|[−+]?[\d.]+ to [−+]?[\d.]+|)"
)

# gn-table3a and gn-table3b of Wu and He 2018: (groups, error), (channels per group, error)
_PUBLISHED_GROUPS = ((64, 24.6), (32, 24.1), (16, 24.6), (8, 24.4), (4, 24.6), (2, 24.7), (1, 25.3))
_PUBLISHED_SIZES = ((64, 24.4), (32, 24.5), (16, 24.2), (8, 24.3), (4, 24.8), (2, 25.6), (1, 28.4))


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
    home = str(Path.home())
    text = text if home == "/" else text.replace(f"{home}/", "~/")
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return shown if len(text) <= limit else f"{shown[:limit]}…"


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
        swept = [_cell(a, s.groups.get(x)) for x in a.xs]
        rows.append([s.label, *swept, *([_cell(a, s.groups.get(None))] if some_flat else [])])
    note = f"Mean ± standard deviation over {_usual(a)} seeds; another number of seeds in brackets."
    if some_flat:
        note += f" any: the norm does not depend on the {a.x_name} and was trained once."
    return Table(f"Validation error in % by {a.x_name}", ["norm", *columns], rows, note)


def differences(a: Analysis) -> Table:
    """Every norm against batch norm at the same batch size."""
    rows = [
        [s.label, str(x), signed(d.value), _interval(d), _effect(d), _verdict(d)]
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


def groups(a: Analysis) -> Table:
    """From one group (layer norm) to one channel per group (instance norm)."""
    title = "How channels are divided into groups"
    found = [(key, s) for s in a.series if (key := _division(s.norm))]
    if len(found) < 2:
        return Table(title, ["norm"], [])
    found.sort(key=lambda row: row[0])
    xs = a.xs if any(not s.flat for _, s in found) else (None,)
    heads = ["error" if x is None else f"error at {x}" for x in xs]
    rows = [[s.label, key[2], *[_cell(a, s.at(x)) for x in xs]] for key, s in found]
    note = "Validation error in %, mean ± standard deviation over seeds."
    return Table(title, ["norm", "channels", *heads], rows, note)


def published() -> Table:
    """The paper's own numbers for the division into groups."""
    rows = [
        [str(g), f"{e:.1f}", str(c), f"{f:.1f}"]
        for (g, e), (c, f) in zip(_PUBLISHED_GROUPS, _PUBLISHED_SIZES)
    ]
    note = (
        "Top-1 validation error in %, 32 images per worker, 100 epochs. 1 group is layer norm, "
        "1 channel per group instance norm. From Wu and He 2018, arXiv 1803.08494, table 3; "
        "another task than the one above, so compare the shape, not the numbers."
    )
    columns = ["groups", "error", "channels per group", "error"]
    return Table("Published: ImageNet, ResNet-50", columns, rows, note)


def cost(a: Analysis) -> Table:
    """Time, memory and parameters of each norm."""
    rows = []
    for s in a.series:
        for x, group in s.groups.items():
            seconds, base = _median(group, "seconds"), _plain_seconds(a, s, x)
            saved, size = _median(group, "bytes_saved"), _median(group, "num_parameters")
            if seconds is None and saved is None and size is None:
                continue
            rows.append(
                [
                    s.label,
                    "any" if x is None else str(x),
                    "—" if seconds is None else f"{seconds:#.3g}",
                    "—" if seconds is None or not base else f"{seconds / base:.2f}",
                    "—" if saved is None else f"{saved / 1e6:#.3g}",
                    "—" if size is None else f"{size:,.0f}",
                ]
            )
    columns = ["norm", a.x_name, "seconds", "ratio", "MB", "parameters"]
    note = (
        "seconds: for 1,000 training images, median over epochs and seeds. ratio: to batch norm "
        "at the same batch size. MB: kept for the backward pass, per image. Runs go side by side "
        "on one machine, so times are noisy and small ratios mean nothing."
    )
    return Table("Time and memory", columns, rows, note)


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
    note = "Errors in %: median over the last three epochs. Only counted runs are in a mean."
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


def _cell(a: Analysis, group: Group | None) -> str:
    if group is None or not group.results:
        return "—" if group is not None else ""
    text = spread(group)
    if group.errors and len(group.errors) != _usual(a):
        text += f" ({len(group.errors)})"
    lost = lost_runs(group)
    return f"{text}; {lost}" if lost else text


def _interval(d: Difference) -> str:
    if d.half is None:
        return "—"
    return f"{signed(d.value - d.half)} to {signed(d.value + d.half)}"


def _effect(d: Difference) -> str:
    return "—" if d.effect is None else signed(d.effect)


def _verdict(d: Difference) -> str:
    if d.half is None:
        return "unknown"
    if not d.significant:
        return "not significant"
    return "better" if d.value < 0 else "worse"


def _division(norm: str) -> tuple[int, int, str] | None:
    """Sort key and words for how a norm divides channels; None if it does not."""
    name, option = family(norm), norm.partition(":")[2]
    if not option and name in _ENDS:
        return _ENDS[name]
    if name != "group":
        return None
    if option.isdecimal() and len(option) < 7:
        return 1, int(option), "1 group" if int(option) == 1 else f"{int(option)} groups"
    size = option.removeprefix("size=")
    if option != size and size.isdecimal() and len(size) < 7:
        return 3, -int(size), f"{int(size)} per group"
    return None


_ENDS = {
    "layer": (0, 0, "one group"),
    "group": (2, 0, "16 per group"),
    "instance": (4, 0, "1 per group"),
}


def _median(group: Group, name: str) -> float | None:
    values = [v for r in group.results if (v := getattr(r, name)) is not None]
    return statistics.median(values) if values else None


def _plain_seconds(a: Analysis, s: Series, x: int | None) -> float | None:
    """Seconds of batch norm at the same batch size; for a flat series those at the largest x."""
    reference = s if family(s.norm) == "batch" else a.reference(s)
    if reference is None:
        return None
    known = [k for k in reference.groups if k is not None]
    return _median(reference.at(x if x is not None else max(known, default=None)), "seconds")


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
