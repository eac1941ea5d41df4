"""The section on what layers give while a network learns: percentile fans, norm beside norm."""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis, Series
from normlab.lab.analysis_probes import NUMBERS, PERCENTILES, Probe, medians, probes
from normlab.lab.report import draw
from normlab.lab.report.charts import colour_classes
from normlab.lab.report.sections import Figure, Section
from normlab.lab.report.tables import Table

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_MAX_FIGURES = 8  # layers that are drawn; the table has all
_MAX_POINTS = 24  # of a fan
_HEIGHT = 210  # of a panel
_OWN_SCALE = 6  # times as wide as the narrowest fan: then they cannot share an axis
_PLACES = {"input": "before the norm", "output": "output", "features": "Pooled features"}
_HEADS = ("mean", "variance", "dead", "gradient", "noise", "gap")


@dataclass(frozen=True)
class Fan:
    """One layer of one norm at one batch size: medians over the seeds, as it learned.

    Args:
        x: the batch size, None where there is one or none.
        points: those with all four percentiles.
        last: the numbers of the last step.
    """

    series: Series
    x: int | None
    num_seeds: int
    points: tuple[tuple[int, tuple[float, ...]], ...]  # (samples, percentiles)
    last: Probe

    @property
    def values(self) -> list[float]:
        """All that is drawn of it."""
        return [v for _, values in self.points for v in values]


@dataclass(frozen=True)
class Row:
    """A layer at a batch size with the fan of each norm."""

    layer: str
    place: str
    x: int | None
    fans: tuple[Fan, ...]

    @property
    def title(self) -> str:
        """The layer and what of it is shown."""
        name = "" if self.place == self.layer else f"{self.layer}, "
        return f"{name}{_PLACES.get(self.place, self.place)}"


@dataclass(frozen=True)
class Axis:
    """What the panels of a row share.

    Args:
        end: the last number of samples.
        values: what the vertical axis holds; none where each panel has its own.
        colours: by the label of a series.
    """

    end: int
    values: Sequence[float]
    colours: dict[str, str]


def section(a: Analysis, runs: "Sequence[Run]") -> Section | None:
    """Fans of the recorded layers; None if no run has recorded any."""
    found = rows(a, runs)
    if not found:
        return None
    drawn = _spaced([row for row in found if any(fan.points for fan in row.fans)])
    said = [text for row in drawn if (text := in_words(a, row))]
    table = numbers(a, found)
    short = len(table.rows) <= 16
    return Section(
        "probes",
        "What the layers give",
        sentences=said[-2:],
        figures=[figure(a, row) for row in drawn],
        tables=[table] if short else [],
        more=said[:-2],
        folded=[] if short else [table],
    )


def rows(a: Analysis, runs: "Iterable[Run]") -> list[Row]:
    """Every recorded layer in the order of the network, at every batch size."""
    recorded = {str(run.path): _by_layer(run) for run in runs if run.experiment.probe is not None}
    every = dict.fromkeys(key for found in recorded.values() for key in found)
    made = []
    for layer, place in every:
        for x in a.xs or (None,):
            fans = []
            for series in a.series:
                found = [recorded.get(r.path, {}) for r in series.at(x).results]
                seeds = [of[layer, place] for of in found if (layer, place) in of]
                if seeds:
                    fans.append(_fan(series, x, seeds))
            if fans:
                made.append(Row(layer, place, x, tuple(fans)))
    return made


def figure(a: Analysis, row: Row) -> Figure:
    """A panel for each norm, with one axis for all unless their fans are of different sizes."""
    drawn = [fan for fan in row.fans if fan.points]
    widths = [max(fan.values) - min(fan.values) for fan in drawn]
    shared = max(widths) <= _OWN_SCALE * min(widths)
    axis = Axis(
        max(samples for fan in drawn for samples, _ in fan.points) or 1,
        [v for fan in drawn for v in fan.values] if shared else (),
        colour_classes(a),
    )
    title = _title(a, row)
    seeds = sorted({fan.num_seeds for fan in drawn})
    note = (
        f"{title}, as the network learns: percentiles 1, 20, 80 and 99 of the values "
        f"in a training batch, median over {' or '.join(map(str, seeds))} "
        f"{'seed' if seeds == [1] else 'seeds'}. "
    )
    note += "All panels share one axis." if shared else "Each panel has an axis of its own."
    table = Table(
        f"Percentiles of {title}",
        ["norm", "training images", *(f"{p} %" for p in PERCENTILES)],
        [
            [fan.series.label, f"{samples:,}", *map(_shown, values)]
            for fan in drawn
            for samples, values in fan.points
        ],
    )
    return Figure(
        title,
        _drawing(row, drawn, axis, 720, 4),
        table,
        note=note,
        narrow=_drawing(row, drawn, axis, 360, 2),
    )


def in_words(a: Analysis, row: Row) -> str:
    """Where the values lie at the end, norm by norm."""
    parts = []
    for fan in row.fans:
        if fan.points:
            (_, (low, *_, high)), label = fan.points[-1], fan.series.label
            parts.append(f"{_shown(low)} and {_shown(high)} with {label}")
    if not parts:
        return ""
    return f"{_title(a, row)}: in the end, 98 % of the values lie between {'; '.join(parts)}."


def numbers(a: Analysis, found: Sequence[Row]) -> Table:
    """Everything recorded of each layer at the last step."""
    by_size = len(a.xs) > 1
    body = [
        [
            row.title,
            fan.series.label,
            *([str(row.x)] if by_size else []),
            *(_shown(fan.last.percentiles.get(p)) for p in PERCENTILES),
            *(_shown(getattr(fan.last, name)) for name in NUMBERS),
        ]
        for row in found
        for fan in row.fans
    ]
    heads = ["layer", "norm", *([a.x_name] if by_size else [])]
    note = (
        "At the last recorded step, median over seeds. dead: share of channels that are 0 "
        "everywhere. gradient: norm over the layer's parameters. noise: what the batch's means "
        "stray from the running ones, in standard deviations. gap: log of running to batch "
        "variance. Noise and gap are root mean squares over channels."
    )
    columns = [*heads, *(f"{p} %" for p in PERCENTILES), *_HEADS]
    return Table("Layers at the end of training", columns, body, note)


def _by_layer(run: "Run") -> dict[tuple[str, str], list[Probe]]:
    """The probes of each layer; none of a damaged run, which the page lists as such."""
    found: dict[tuple[str, str], list[Probe]] = {}
    with contextlib.suppress(ValueError, OSError):
        for probe in probes(run):
            found.setdefault((probe.layer, probe.place), []).append(probe)
    return found


def _title(a: Analysis, row: Row) -> str:
    """The layer, what of it is shown, and the batch size if there are several."""
    size = "" if row.x is None or len(a.xs) < 2 else f", {a.x_name} {row.x}"
    return f"{row.title}{size}"


def _fan(series: Series, x: int | None, seeds: list[list[Probe]]) -> Fan:
    found = medians(seeds)
    points = [(p.samples, fan) for p in found if (fan := p.fan) is not None]
    return Fan(series, x, len(seeds), tuple(_thinned(points)), found[-1])


def _drawing(row: Row, fans: Sequence[Fan], axis: Axis, width: int, columns: int) -> str:
    """The panels side by side in one drawing."""
    columns = min(columns, len(fans))
    lines = math.ceil(len(fans) / columns)
    svg = ET.Element("svg", {"viewBox": f"0 0 {width} {_HEIGHT * lines}", "role": "img"})
    wide = width / columns
    for i, fan in enumerate(fans):
        corner = f"translate({i % columns * wide:.1f} {i // columns * _HEIGHT})"
        _panel(ET.SubElement(svg, "g", {"transform": corner}), fan, axis, wide)
    return draw.as_text(svg, f"{row.title}: {', '.join(fan.series.label for fan in fans)}")


def _panel(svg: ET.Element, fan: Fan, axis: Axis, width: float) -> None:
    x0, y0, x1, y1 = box = (40.0, 26.0, width - 12, _HEIGHT - 44.0)
    label, colour = fan.series.label, axis.colours[fan.series.label]
    across = draw.scale(0, axis.end, x0, x1)
    up = _vertical(svg, axis.values or fan.values, box)
    for tick in [t for t in draw.ticks(0, axis.end, 3) if t <= axis.end]:
        draw.text(svg, across(tick), y1 + 18, draw.thousands(tick), "tick middle")
    draw.text(svg, (x0 + x1) / 2, y1 + 34, "training images seen", "tick middle")
    mark = ET.SubElement(svg, "g", {"class": colour})
    draw.text(mark, x0, y0 - 12, draw.short(label, int(width / 8)), "label start", label)
    lines = list(zip(*(values for _, values in fan.points)))
    xs = [across(samples) for samples, _ in fan.points]
    for low, high in ((0, 3), (1, 2)):
        draw.ribbon(mark, list(zip(xs, map(up, lines[low]), map(up, lines[high]))))
    for line in lines:
        draw.path(mark, list(zip(xs, map(up, line))), "seed-curve")
    for (samples, at), px in zip(fan.points, xs):
        said = ", ".join(f"{p} %: {_shown(v)}" for p, v in zip(PERCENTILES, at))
        says = f"{label}, after {samples:,} images. {said}"
        draw.circle(mark, px, up(at[-1]), 2.2, "seed", says)


def _vertical(
    svg: ET.Element, values: Sequence[float], box: tuple[float, float, float, float]
) -> Callable[[float], float]:
    """An axis that holds all values, with the line of 0 if that is among them."""
    x0, y0, x1, y1 = box
    low, high = min(values), max(values)
    high = high if high > low else low + (abs(low) or 1)
    unit = 10.0 ** math.floor(math.log10(high - low))  # without norms, values can be tiny
    ticks = [tick * unit for tick in draw.ticks(low / unit, high / unit, 5)]
    up = draw.scale(ticks[0], ticks[-1], y1, y0)
    for tick in ticks:
        base = tick == 0 or (0 < ticks[0] == tick)
        draw.line(svg, x0, up(tick), x1, up(tick), "base" if base else "grid")
        draw.text(svg, x0 - 7, up(tick) + 4, f"{tick:g}".replace("-", "−"), "tick end")
    return up


def _shown(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}".replace("-", "−")


def _thinned(points: list) -> list:
    """At most so many, evenly, with the first and the last."""
    most = min(len(points), _MAX_POINTS)
    return [points[round(i * (len(points) - 1) / max(most - 1, 1))] for i in range(most)]


def _spaced(found: list[Row]) -> list[Row]:
    """At most so many rows, evenly through the network, with the first and the last."""
    most = min(len(found), _MAX_FIGURES)
    return [found[math.floor(i * (len(found) - 1) / max(most - 1, 1))] for i in range(most)]
