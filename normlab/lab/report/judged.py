"""Batch norm by running, population and batch statistics: what evaluation adds to the error."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis, Group, Result, Series
from normlab.lab.differences import paired, plural
from normlab.lab.report import draw
from normlab.lab.report.sections import Figure, Section
from normlab.lab.report.sentences import signed, spread_of
from normlab.lab.report.tables import Table, clean

if TYPE_CHECKING:
    from normlab.lab.runs import Run

# what a row of the figure is called, its colour, and its number in a result
_KINDS = {
    "training": ("c3", lambda r: r.train_error),
    "batch": ("c1", lambda r: r.judged and r.judged.batch),
    "population": ("c2", lambda r: r.judged and r.judged.population),
    "running": ("c0", lambda r: r.judged and r.judged.running),
}
_TITLE = "Batch norm by whose statistics"
_NOTE = (
    "Validation error in % of the last weights, with running averages; with the statistics of up "
    "to 1,024 training images (calibrated); with those of each validation batch itself, which no "
    "single image can be judged by. Training error beside them is with batch statistics. Mean ± "
    "standard deviation over seeds."
)


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """What running averages cost against the population's statistics, of batch norms."""
    made = table(a)
    if not made.rows:
        return None
    drawn = figure(a)
    return Section(
        "statistics", _TITLE, sentences=sentences(a), figures=[drawn] if drawn else [],
        tables=[made],
    )  # fmt: skip


def table(a: Analysis) -> Table:
    """A row for each norm and batch size."""
    rows = [
        [s.label, str(x or "any"), *(spread_of(_values(g, kind)) for kind in reversed(_KINDS))]
        for s, x, g in _judged(a)
    ]
    return Table(_TITLE, ["norm", a.x_name, *reversed(_KINDS)], rows, _NOTE)


def sentences(a: Analysis) -> list[str]:
    """For each norm at its smallest batch: what calibration gives back."""
    said = []
    for series in dict.fromkeys(s.label for s, *_ in _judged(a)):
        _, x, group = next(row for row in _judged(a) if row[0].label == series)
        d = paired(_by_seed(group, "running"), _by_seed(group, "population"))
        if d is None:
            continue
        at = "" if x is None else f" at a {a.x_name} of {x}"
        within = "" if d.half is None else f" ± {d.half:.1f}"
        apart = f"({signed(d.value)}{within} points, {plural(d.num_seeds[0], 'seed')})"
        if not d.significant:
            found, than = "do not differ significantly", "from"
            so = "calibrating would not help"
        elif d.value > 0:
            found, than, so = "are worse", "than", "normlab.calibrate mends that"
        else:
            found, than, so = "are better", "than", "calibrating would not help"
        said.append(
            f"With {series}{at}, running averages {found} {than} the population's statistics "
            f"{apart}: {so}."
        )
    return [clean(text, 5000) for text in said]


def figure(a: Analysis) -> Figure | None:
    """The four errors against the batch size, a panel for each norm with several sizes."""
    found = _judged(a)
    labels = [s.label for s, *_ in found]
    panels = [
        (label, svg)
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1 and (svg := _panel(a, [r for r in found if r[0].label == label]))
    ]
    if not panels:
        return None
    rows = [
        [s.label, str(x), kind, str(r.experiment.seed), f"{value:.2f}", r.name]
        for s, x, g in found
        for kind, (_, number) in _KINDS.items()
        for r in g.results
        if (value := number(r)) is not None
    ]
    columns = ["norm", a.x_name, "statistics", "seed", "error", "run"]
    return Figure(
        _TITLE, "", Table(_TITLE, columns, rows, "In %."), note=_NOTE, panels=panels,
        legend=[(css, kind) for kind, (css, _) in _KINDS.items()],
    )  # fmt: skip


def _panel(a: Analysis, found: "Sequence[_Row]") -> str:
    values = [v for _, _, g in found for kind in _KINDS for v in _values(g, kind)]
    svg, box = draw.canvas(320, 236, left=34, right=14)
    x0, _, x1, y1 = box
    across, up = draw.scale(0, len(found) - 1, x0 + 14, x1 - 14), draw.vertical(svg, values, box)
    for place, (_, x, _) in enumerate(found):
        draw.text(svg, across(place), y1 + 18, str(x), "tick middle")
    draw.text(svg, (x0 + x1) / 2, y1 + 36, f"{a.x_name}, images", "tick middle")
    for kind, (css, number) in _KINDS.items():
        mark = ET.SubElement(svg, "g", {"class": css})
        means = [(p, _values(g, kind)) for p, (_, _, g) in enumerate(found)]
        draw.path(mark, [(across(p), up(statistics.fmean(v))) for p, v in means if v], "line")
        for place, (_, _, group) in enumerate(found):
            for r in group.results:
                if (value := number(r)) is not None:
                    says = f"{kind}: {r.name}, seed {r.experiment.seed}: {value:.2f} %"
                    draw.circle(mark, across(place), up(value), 2.6, "seed", says)
    return draw.as_text(svg, f"{_TITLE}. {found[0][0].label}")


_Row = tuple[Series, int | None, Group]


def _judged(a: Analysis) -> "list[_Row]":
    """Norms and batch sizes with a run that was judged, from the smallest batch."""
    rows = [
        (s, x, g)
        for s in a.series
        for x, g in s.groups.items()
        if any(r.error is not None and r.judged for r in g.results)
    ]
    return sorted(rows, key=lambda row: (a.series.index(row[0]), row[1] or 0))


def _values(group: Group, kind: str) -> list[float]:
    return list(_by_seed(group, kind).values())


def _by_seed(group: Group, kind: str) -> dict[int, float]:
    """One of the four errors of the counted runs that were judged."""
    number = _KINDS[kind][1]
    counted: list[Result] = [r for r in group.results if r.error is not None and r.judged]
    return {r.experiment.seed: v for r in counted if (v := number(r)) is not None}
