"""What a norm costs: time of a step, memory it keeps for the backward pass, and the peak."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis, Group, Result, Series
from normlab.lab.report import charts, draw
from normlab.lab.report.sections import Figure, Section
from normlab.lab.report.sentences import upper
from normlab.lab.report.tables import Table, cost, median

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_LABEL = 20  # characters of a norm's name beside its row
_MAX_SIZES = 12  # batch sizes to choose from; of more, the largest


@dataclass(frozen=True)
class _Quantity:
    """A panel: its heading, and the field of Result with how many of its units make one shown."""

    heading: str
    field: str
    unit: float

    def of(self, r: Result) -> float | None:
        value: float | None = getattr(r, self.field)
        return None if value is None else value / self.unit


_QUANTITIES = (
    _Quantity("Time of a step, ms", "seconds_step", 1e-3),
    _Quantity("Kept for the backward pass, MB per step", "bytes_saved_step", 1e6),
    _Quantity("Peak memory, MB", "bytes_peak", 1e6),
)


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Time, memory and parameters of each norm."""
    table, drawn = cost(a), figure(a)
    if not table.rows:
        return None
    return Section(
        "cost", "Time and memory", tables=[table], figures=[drawn] if drawn is not None else []
    )


def figure(a: Analysis) -> Figure | None:
    """Time and memory by norm, at the batch size the reader chooses; None without a number."""
    colours = charts.colour_classes(a)
    choices = []
    for x in (a.xs or (None,))[-_MAX_SIZES:]:
        drawn = [(q.heading, svg) for q in _QUANTITIES if (svg := _panel(a, q, x, colours))]
        if drawn:
            choices.append(("any" if x is None else str(x), drawn))
    if not choices:
        return None
    title = "Time and memory of a step by norm"
    note = (
        "Each dot is one run, the bar their median. Runs go side by side on one machine, so times "
        "are noisy; memory is not. The peak is of all the training on a GPU; on the CPU of the "
        "network and one forward and backward pass."
    )
    if len(a.xs) == 1:
        note = f"{upper(a.x_name)} {a.xs[0]}. {note}"
    return Figure(
        title,
        "",
        _numbers(a),
        note=note,
        choices=choices,
        chosen=choices[-1][0],
        asks=f"at a {a.x_name} of",
    )


def _panel(a: Analysis, q: _Quantity, x: int | None, colours: Mapping[str, str]) -> str:
    """A row for each norm; "" where nothing was measured."""
    rows = [(s, s.at(x)) for s in a.series if _values(q, s.at(x))]
    if not rows:
        return ""
    left = 16.0 + 7.0 * min(max(len(s.label) for s, _ in rows), _LABEL)
    svg, (x0, y0, x1, y1) = draw.canvas(320, 48 + 24 * len(rows), left=left, right=22)
    y0, y1 = y0 - 20, y1 + 14
    ticks = draw.ticks(0, max(v for _, g in rows for v in _values(q, g)) or 1, 3)
    across = draw.scale(0, ticks[-1], x0, x1)
    for tick in ticks:
        draw.line(svg, across(tick), y0, across(tick), y1, "grid" if tick else "base")
        draw.text(svg, across(tick), y1 + 18, f"{tick:g}", "tick middle")
    for i, (series, group) in enumerate(rows):
        y = y0 + 24 * i + 14
        mark = ET.SubElement(svg, "g", {"class": colours[series.label]})
        name = draw.short(series.label, _LABEL)
        draw.text(mark, x0 - 10, y + 4, name, "label end", series.label)
        middle = median(group, q.field) or 0.0
        draw.line(mark, x0, y, across(middle / q.unit), y, "bar")
        for r in group.results:
            if (value := q.of(r)) is not None:
                says = f"{r.name}, seed {r.experiment.seed}: {value:#.3g}"
                draw.circle(mark, across(value), y, 3.2, "seed", says)
    at = "" if x is None else f", {a.x_name} {x}"
    return draw.as_text(svg, f"{q.heading} by norm{at}")


def _values(q: _Quantity, group: Group) -> list[float]:
    return [value for r in group.results if (value := q.of(r)) is not None]


def _numbers(a: Analysis) -> Table:
    """Every dot of the figure."""
    rows = [
        [series.label, "any" if x is None else str(x), str(r.experiment.seed), *_cells(r), r.name]
        for series, x, r in _runs(a)
        if any(q.of(r) is not None for q in _QUANTITIES)
    ]
    columns = ["norm", a.x_name, "seed", *(q.heading for q in _QUANTITIES), "run"]
    return Table("Time and memory of every run", columns, rows)


def _cells(r: Result) -> list[str]:
    return ["—" if (v := q.of(r)) is None else f"{v:#.3g}" for q in _QUANTITIES]


def _runs(a: Analysis) -> list[tuple[Series, int | None, Result]]:
    return [(s, x, r) for s in a.series for x, group in s.groups.items() for r in group.results]
