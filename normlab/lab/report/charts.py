"""Figures as inline SVG, drawn by hand: no library, no script, colours from the page's style.

Every element is built as XML, so that names of runs are escaped where they are written.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis, Epoch, Group, Result, Series, family
from normlab.lab.report.sentences import upper
from normlab.lab.report.tables import clean

_COLOURS = {"batch": 0, "group": 1, "layer": 2, "instance": 3, "none": 4}
_NUM_COLOURS = 8  # as in page.css
_MAX_POINTS = 60  # of a curve; a pixel holds no more


def error_by_batch(a: Analysis, width: int, height: int) -> str:
    """Validation error against batch size: mean, one dot per seed, a band of ± 1 std."""
    drawn = [s for s in a.series if any(g.errors for g in s.groups.values())]
    if not drawn or len(a.xs) < 2:
        return error_by_norm(a, width)
    beyond = off_scale(a)
    values = [v for s in drawn if s not in beyond for v in _extent(s)]
    right = 8.0 + 6.6 * min(max(len(s.label) for s in drawn), _label_length(width))
    svg, (x0, y0, x1, y1) = _canvas(width, height, right=right + 14)
    gutter = 34 if any(s.flat for s in drawn) else 18
    across = _scale(math.log2(a.xs[0]), math.log2(a.xs[-1]), x0 + 18, x1 - gutter)
    up = _vertical(svg, values, (x0, y0, x1, y1))
    for x in a.xs:
        _text(svg, across(math.log2(x)), y1 + 18, str(x), "tick middle")
    _text(svg, (x0 + x1) / 2, y1 + 38, f"{upper(a.x_name)}, images (log scale)", "middle")
    _text(svg, x0 - 30, y0 - 14, "Validation error, %", "start")
    colours = colour_classes(a)
    dodge = _scale(0, max(len(drawn) - 1, 1), -6.0, 6.0)
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
        _ribbon(mark, [(px, up(low), up(high)) for px, (low, high) in bands])
        kind = "line flat" if series.flat else "line"
        _path(mark, [(px, up(mean)) for px, mean, _ in points], kind)
        for px, _, g in points[-1:] if series.flat else points:
            _seeds(mark, px + dodge(i) - (12 if series.flat else 0), g, up)
        for px, mean, g in [] if series.flat else points:
            _circle(mark, px, up(mean), 3.8, "mean", _mean_title(series, g))
        end, last, _ = points[-1]
        ends.append((up(last), end, series.label, colours[series.label]))
    _lost(svg, a, lambda x: x1 - 8 if x is None else across(math.log2(x)), y0)
    _end_labels(svg, ends, x1 + 14, y0, y1, _label_length(width))
    return _svg(svg, f"Validation error by {a.x_name}, one line per norm")


def error_by_norm(a: Analysis, width: int) -> str:
    """Validation error at one batch size: a row per norm, one dot per seed, mean ± 1 std."""
    rows = [(s, g) for s in a.series for g in s.groups.values() if g.errors]
    if not rows:
        return ""
    left = 16.0 + 7.4 * min(max(len(s.label) for s, _ in rows), _label_length(width) + 4)
    svg, (x0, y0, x1, y1) = _canvas(width, 74 + 30 * len(rows), left=left, right=18)
    low, high, ticks = _range([v for _, g in rows for v in (*g.errors, *_band(g))])
    across = _scale(low, high, x0, x1)
    for tick in ticks:
        _line(svg, across(tick), y0, across(tick), y1, "grid")
        _text(svg, across(tick), y1 + 18, f"{tick:g}", "tick middle")
    _text(svg, x0, y0 - 14, "Validation error, %", "start")
    colours = colour_classes(a)
    for i, (series, group) in enumerate(rows):
        y = y0 + 30 * i + 15
        mark = ET.SubElement(svg, "g", {"class": colours[series.label]})
        _text(
            mark,
            x0 - 12,
            y + 4,
            _short(series.label, _label_length(width) + 4),
            "label end",
            series.label,
        )
        low_band, high_band = map(across, _band(group))
        _line(mark, low_band, y, high_band, y, "bar")
        for r in group.results:
            if r.error is not None:
                _circle(mark, across(r.error), y, 3.2, "seed", _run_title(r))
        _circle(mark, across(group.mean or 0), y, 4.5, "mean", _mean_title(series, group))
    return _svg(svg, "Validation error by norm")


def off_scale(a: Analysis) -> list[Series]:
    """Flat series so far above all others that they would squeeze the figure: named below it."""
    swept = [v for s in a.series if not s.flat for v in _extent(s)]
    return [
        s for s in a.series if s.flat and swept and max(_extent(s), default=0) > 1.5 * max(swept)
    ]


def error_curves(a: Analysis) -> list[tuple[str, str]]:
    """Error against samples seen, a panel (its title and figure) for each batch size."""
    drawn = [r for r in a.results if r.epochs and r not in a.repeated]
    shown = [e for r in drawn for e in r.epochs]
    values = [v for e in shown for v in (e.train_error, e.validation_error) if v is not None]
    if not values:
        return []
    last = max(e.samples for e in shown) or 1
    panels = []
    for x in a.xs or (None,):
        svg, box = _canvas(320, 236, left=34, right=14)
        x0, _, x1, y1 = box
        across, up = _scale(0, last, x0, x1), _vertical(svg, values, box)
        for tick in [t for t in _ticks(0, last, 3) if t <= last]:
            _text(svg, across(tick), y1 + 18, _thousands(tick), "tick middle")
        _text(svg, (x0 + x1) / 2, y1 + 36, "training images seen", "tick middle")
        for series in a.series:
            mark = ET.SubElement(svg, "g", {"class": colour_classes(a)[series.label]})
            _curves(mark, series.at(x).results, across, up)
        title = "" if x is None else f"{upper(a.x_name)} {x}"
        panels.append((title, _svg(svg, f"Error curves. {title}")))
    return panels


def colour_classes(a: Analysis) -> dict[str, str]:
    """A colour for the label of each series; the usual norms have theirs on every page."""
    chosen: dict[str, str] = {}
    free = [c for c in range(_NUM_COLOURS) if c not in {_home(s) for s in a.series}]
    for i, series in enumerate(a.series):
        home = f"c{_home(series)}"
        spare = f"c{free.pop(0)}" if free else f"c{i % _NUM_COLOURS} twice"
        chosen[series.label] = home if home != "cNone" and home not in chosen.values() else spare
    return chosen


def swatch(css: str) -> str:
    """The line of a legend."""
    svg = ET.Element("svg", {"viewBox": "0 0 22 10", "class": f"swatch {css}"})
    _line(svg, 1, 5, 21, 5, "line")
    return _svg(svg, "")


def _home(series: Series) -> int | None:
    return _COLOURS.get(family(series.norm))


def _curves(mark: ET.Element, results: Sequence[Result], across: Callable, up: Callable) -> None:
    for r in results:
        for key in (_train, _validation):
            for part in _parts(r.epochs, key):
                spots = [(across(e.samples), up(key(e))) for e in part]
                path = _path(mark, spots, "seed-curve" + (" train" if key is _train else ""))
                _title(path, _run_title(r))
    counted = [r for r in results if r.error is not None and r.epochs]
    for key in (_train, _validation):
        mean = [(across(e), up(v)) for e, v in _thin(_mean_curve(counted, key))]
        _path(mark, mean, "curve train" if key is _train else "curve")


def _train(epoch: Epoch) -> float | None:
    return epoch.train_error


def _validation(epoch: Epoch) -> float | None:
    return epoch.validation_error


def _parts(epochs: Sequence[Epoch], key: Callable) -> Iterator[list[Epoch]]:
    """Stretches of a curve between missing values."""
    part: list[Epoch] = []
    for epoch in _thin(epochs):
        if key(epoch) is not None:
            part.append(epoch)
        elif part:
            yield part
            part = []
    if part:
        yield part


def _mean_curve(results: Sequence[Result], key: Callable) -> list[tuple[int, float]]:
    """Mean over the runs at every number of samples that all of them have."""
    found: dict[int, list[float]] = {}
    for r in results:
        for e in r.epochs:
            if key(e) is not None:
                found.setdefault(e.samples, []).append(key(e))
    return [(s, statistics.fmean(v)) for s, v in sorted(found.items()) if len(v) == len(results)]


def _thin(points: Sequence) -> list:
    """At most so many of the points as can be seen, with the last one."""
    step = math.ceil(len(points) / _MAX_POINTS) or 1
    kept = list(points[::step])
    return kept if not kept or kept[-1] is points[-1] else [*kept, points[-1]]


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
            _circle(mark, x, up(r.error), 2.6, "seed", _run_title(r))


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
                    _title(_text(mark, px, y + 4 + 9 * at[px], "×", "cross middle"), title)


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
        _line(mark, max(px, x - 14) + 2, y, x - 3, at, "leader")
        _text(mark, x, at + 4, _short(label, length), "label start", label)


def _canvas(
    width: int, height: int, *, left: float = 38, right: float = 14
) -> tuple[ET.Element, tuple[float, float, float, float]]:
    """An empty figure and the corners of its plot, room left for the axes."""
    svg = ET.Element("svg", {"viewBox": f"0 0 {width} {height}", "role": "img"})
    return svg, (left, 30.0, width - right, height - 44.0)


def _vertical(svg: ET.Element, values: Sequence[float], box: tuple) -> Callable[[float], float]:
    x0, y0, x1, y1 = box
    low, high, ticks = _range(values)
    up = _scale(low, high, y1, y0)
    for tick in ticks:
        _line(svg, x0, up(tick), x1, up(tick), "base" if tick == low else "grid")
        _text(svg, x0 - 7, up(tick) + 4, f"{tick:g}", "tick end")
    return up


def _range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends and ticks of an error axis; from 0 unless the values would fill less than half."""
    low, high = min(values), max(values)
    low = 0.0 if low < high / 2 else low
    ticks = _ticks(low, high if high > low else low + 1, 5)
    return ticks[0], ticks[-1], ticks


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose low … high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda v: start + (v - low) / ((high - low) or 1) * (end - start)


def _thousands(value: float) -> str:
    if value < 1000:
        return f"{value:g}"
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1000:g}k"


def _run_title(r: Result) -> str:
    error = r.outcome if r.error is None else f"{r.error:.2f} %"
    return f"{r.name}, seed {r.experiment.seed}: {error}"


def _mean_title(series: Series, group: Group) -> str:
    return f"{series.label}, mean of {len(group.errors)}: {group.mean:.2f} %"


def _label_length(width: int) -> int:
    return 10 if width < 500 else 22


def _short(label: str, length: int) -> str:
    label = clean(label)
    return label if len(label) <= length else label[: length - 1] + "…"


def _ribbon(mark: ET.Element, points: Sequence[tuple[float, float, float]]) -> None:
    """The area between two lines through (x, low, high)."""
    if len(points) > 1:
        there = [(x, low) for x, low, _ in points]
        back = [(x, high) for x, _, high in reversed(points)]
        _path(mark, [*there, *back], "band", close=True)


def _path(
    mark: ET.Element, points: Sequence[tuple[float, float]], css: str, *, close: bool = False
) -> ET.Element:
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if close else "")
    return ET.SubElement(mark, "path", {"class": css, "d": d if points else ""})


def _line(mark: ET.Element, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
    _path(mark, [(x1, y1), (x2, y2)], css)


def _circle(mark: ET.Element, x: float, y: float, r: float, css: str, title: str) -> None:
    spot = {"class": css, "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{r:g}"}
    _title(ET.SubElement(mark, "circle", spot), title)


def _text(mark: ET.Element, x: float, y: float, text: str, css: str, title: str = "") -> ET.Element:
    element = ET.SubElement(mark, "text", {"class": css, "x": f"{x:.1f}", "y": f"{y:.1f}"})
    element.text = clean(text)
    if title:
        _title(element, title)
    return element


def _title(element: ET.Element, text: str) -> None:
    ET.SubElement(element, "title").text = clean(text)


def _svg(svg: ET.Element, label: str) -> str:
    svg.set("aria-label" if label else "aria-hidden", clean(label) or "true")
    return ET.tostring(svg, encoding="unicode")
