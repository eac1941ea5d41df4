"""Figures as inline SVG, drawn by hand: no library, no script, colours from the page's style.

Every element is built as XML, so that names of runs are escaped where they are written.
"""

import math
from collections.abc import Callable, Iterable
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis, Group, Result, Series, family
from normlab.lab.report import draw
from normlab.lab.report.sentences import upper

_COLOURS = {"batch": 0, "group": 1, "layer": 2, "instance": 3, "none": 4}
_SPARE = (7, 5, 6)  # the last is much like that of group norm
_NUM_COLOURS = len(_COLOURS) + len(_SPARE)  # as in page.css


def error_by_batch(a: Analysis, width: int, height: int) -> str:
    """Validation error against batch size: mean, one dot per seed, a band of ± 1 std."""
    drawn = [s for s in a.series if any(g.errors for g in s.groups.values())]
    if not drawn or len(a.xs) < 2:
        return error_by_norm(a, width)
    beyond = off_scale(a)
    values = [v for s in drawn if s not in beyond for v in _extent(s)]
    right = 8.0 + 6.6 * min(max(len(s.label) for s in drawn), _label_length(width))
    svg, (x0, y0, x1, y1) = draw.canvas(width, height, right=right + 14)
    gutter = 34 if any(s.flat for s in drawn) else 18
    across = draw.scale(math.log2(a.xs[0]), math.log2(a.xs[-1]), x0 + 18, x1 - gutter)
    up = draw.vertical(svg, values, (x0, y0, x1, y1))
    for x in a.xs:
        draw.text(svg, across(math.log2(x)), y1 + 18, str(x), "tick middle")
    draw.text(svg, (x0 + x1) / 2, y1 + 38, f"{upper(a.x_name)}, images (log scale)", "middle")
    draw.text(svg, x0 - 30, y0 - 14, "Validation error, %", "start")
    colours = colour_classes(a)
    dodge = draw.scale(0, max(len(drawn) - 1, 1), -6.0, 6.0)
    ends = []
    for i, series in enumerate(drawn):
        if series in beyond:
            continue
        mark = ET.SubElement(svg, "g", {"class": colours[series.label]})
        points = [
            (px, g.mean, g)
            for x, g in series.groups.items()
            for px in ([across(math.log2(x))] if x is not None else [x0, x1])
            if g.mean is not None
        ]
        bands = [(px, _band(g)) for px, _, g in points if g.std is not None]
        draw.ribbon(mark, [(px, up(low), up(high)) for px, (low, high) in bands])
        kind = "line flat" if series.flat else "line"
        draw.path(mark, [(px, up(mean)) for px, mean, _ in points], kind)
        for px, _, g in points[-1:] if series.flat else points:
            _seeds(mark, px + dodge(i) - (12 if series.flat else 0), g, up)
        for px, mean, g in [] if series.flat else points:
            draw.circle(mark, px, up(mean), 3.8, "mean", _mean_title(series, g))
        end, last, _ = points[-1]
        ends.append((up(last), end, series.label, colours[series.label]))
    _lost(svg, a, lambda x: x1 - 8 if x is None else across(math.log2(x)), y0)
    _end_labels(svg, ends, x1 + 14, y0, y1, _label_length(width))
    return draw.as_text(svg, f"Validation error by {a.x_name}, one line per norm")


def error_by_norm(a: Analysis, width: int) -> str:
    """Validation error at one batch size: a row per norm, one dot per seed, mean ± 1 std."""
    rows = [(s, g) for s in a.series for g in s.groups.values() if g.errors]
    if not rows:
        return ""
    left = 16.0 + 7.4 * min(max(len(s.label) for s, _ in rows), _label_length(width) + 4)
    svg, (x0, y0, x1, y1) = draw.canvas(width, 74 + 30 * len(rows), left=left, right=18)
    low, high, ticks = draw.value_range([v for _, g in rows for v in (*g.errors, *_band(g))])
    across = draw.scale(low, high, x0, x1)
    for tick in ticks:
        draw.line(svg, across(tick), y0, across(tick), y1, "grid")
        draw.text(svg, across(tick), y1 + 18, f"{tick:g}", "tick middle")
    draw.text(svg, x0, y0 - 14, "Validation error, %", "start")
    colours = colour_classes(a)
    for i, (series, group) in enumerate(rows):
        y = y0 + 30 * i + 15
        mark = ET.SubElement(svg, "g", {"class": colours[series.label]})
        draw.text(
            mark,
            x0 - 12,
            y + 4,
            draw.short(series.label, _label_length(width) + 4),
            "label end",
            series.label,
        )
        low_band, high_band = map(across, _band(group))
        draw.line(mark, low_band, y, high_band, y, "bar")
        for r in group.results:
            if r.error is not None:
                draw.circle(mark, across(r.error), y, 3.2, "seed", run_title(r))
        draw.circle(mark, across(group.mean or 0), y, 4.5, "mean", _mean_title(series, group))
    return draw.as_text(svg, "Validation error by norm")


def off_scale(a: Analysis) -> list[Series]:
    """Flat series so far above all others that they would squeeze the figure: named below it."""
    swept = [v for s in a.series if not s.flat for v in _extent(s)]
    return [
        s for s in a.series if s.flat and swept and max(_extent(s), default=0) > 1.5 * max(swept)
    ]


def colour_classes(a: Analysis) -> dict[str, str]:
    """A colour for the label of each series; the usual norms have theirs on every page."""
    chosen: dict[str, str] = {}
    homes = {_home(s) for s in a.series}
    free = [c for c in (*_SPARE, *_COLOURS.values()) if c not in homes]
    for i, series in enumerate(a.series):
        home = f"c{_home(series)}"
        if home == "cNone" or home in chosen.values():
            home = f"c{free.pop(0)}" if free else f"c{i % _NUM_COLOURS} twice"
        chosen[series.label] = home
    return chosen


def swatch(css: str) -> str:
    """The line of a legend."""
    svg = ET.Element("svg", {"viewBox": "0 0 22 10", "class": f"swatch {css}"})
    draw.line(svg, 1, 5, 21, 5, "line")
    return draw.as_text(svg, "")


def _home(series: Series) -> int | None:
    return _COLOURS.get(family(series.norm))


def _band(group: Group) -> tuple[float, float]:
    """Mean ± standard deviation, within what an error can be."""
    if group.mean is None:
        return (0.0, 0.0)
    std = group.std or 0.0
    return max(group.mean - std, 0.0), min(group.mean + std, 100.0)


def _extent(series: Series) -> list[float]:
    """Every error the series draws."""
    groups = [g for g in series.groups.values() if g.errors]
    return [v for g in groups for v in (*g.errors, *_band(g))]


def _seeds(mark: ET.Element, x: float, group: Group, up: Callable) -> None:
    for r in group.results:
        if r.error is not None:
            draw.circle(mark, x, up(r.error), 2.6, "seed", run_title(r))


def _lost(svg: ET.Element, a: Analysis, across: Callable, y: float) -> None:
    """A cross at the top for each run without a result."""
    colours, at = colour_classes(a), dict[float, int]()
    for s in a.series:
        for x, group in s.groups.items():
            for r in group.results:
                if r.error is None:
                    px = across(x)
                    at[px] = at.get(px, -1) + 1
                    title = f"{r.name}: {r.outcome}"
                    mark = ET.SubElement(svg, "g", {"class": colours[s.label]})
                    draw.title(draw.text(mark, px, y + 4 + 9 * at[px], "×", "cross middle"), title)


def _end_labels(
    svg: ET.Element, ends: Iterable[tuple], x: float, top: float, bottom: float, length: int
) -> None:
    """Names beside the ends of the lines, pushed apart where they would overlap."""
    ordered = sorted(ends, key=lambda end: end[0])
    ys: list[float] = []
    for y, *_ in ordered:
        ys.append(max(y, ys[-1] + 15 if ys else top))
    overshoot = max(ys[-1] - bottom, 0)
    for i in range(len(ys) - 1, -1, -1):
        ys[i] = min(ys[i], (ys[i + 1] - 15) if i + 1 < len(ys) else ys[i] - overshoot)
    for (y, px, label, css), at in zip(ordered, ys):
        mark = ET.SubElement(svg, "g", {"class": css})
        draw.line(mark, max(px, x - 14) + 2, y, x - 3, at, "leader")
        draw.text(mark, x, at + 4, draw.short(label, length), "label start", label)


def run_title(r: Result) -> str:
    error = r.outcome if r.error is None else f"{r.error:.2f} %"
    return f"{r.name}, seed {r.experiment.seed}: {error}"


def _mean_title(series: Series, group: Group) -> str:
    return f"{series.label}, mean of {len(group.errors)}: {group.mean:.2f} %"


def _label_length(width: int) -> int:
    return 10 if width < 500 else 22
