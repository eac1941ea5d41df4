"""Marks of a figure as SVG, built as XML so that names of runs are escaped where they are written.

Colours and strokes are classes of page.css.
"""

import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree as ET

from normlab.lab.report.tables import clean


def canvas(
    width: int, height: int, *, left: float = 38, right: float = 14
) -> tuple[ET.Element, tuple[float, float, float, float]]:
    """An empty figure and the corners of its plot, room left for the axes."""
    svg = ET.Element("svg", {"viewBox": f"0 0 {width} {height}", "role": "img"})
    return svg, (left, 30.0, width - right, height - 44.0)


def vertical(svg: ET.Element, values: Sequence[float], box: tuple) -> Callable[[float], float]:
    x0, y0, x1, y1 = box
    low, high, ticks = value_range(values)
    up = scale(low, high, y1, y0)
    for tick in ticks:
        line(svg, x0, up(tick), x1, up(tick), "base" if tick == low else "grid")
        text(svg, x0 - 7, up(tick) + 4, f"{tick:g}", "tick end")
    return up


def value_range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends and ticks of an error axis; from 0 unless the values would fill less than half."""
    low, high = min(values), max(values)
    low = 0.0 if low < high / 2 else low
    marks = ticks(low, high if high > low else low + 1, 5)
    return marks[0], marks[-1], marks


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers that enclose low … high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 2 - round(math.log10(power))  # of 1, 2, 2.5, 5 or 10 powers
    return [round(i * step, digits) for i in range(first, last + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda v: start + (v - low) / ((high - low) or 1) * (end - start)


def thousands(value: float) -> str:
    if value < 1000:
        return f"{value:g}"
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1000:g}k"


def short(label: str, length: int) -> str:
    """Both ends of a long name, since names often begin alike."""
    label = clean(label)
    if len(label) <= length:
        return label
    start = (length - 1) // 2
    return f"{label[:start]}…{label[start + 1 - length :]}"


def ribbon(mark: ET.Element, points: Sequence[tuple[float, float, float]]) -> None:
    """The area between two lines through (x, low, high)."""
    if len(points) > 1:
        there = [(x, low) for x, low, _ in points]
        back = [(x, high) for x, _, high in reversed(points)]
        path(mark, [*there, *back], "band", close=True)


def path(
    mark: ET.Element, points: Sequence[tuple[float, float]], css: str, *, close: bool = False
) -> ET.Element:
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if close else "")
    return ET.SubElement(mark, "path", {"class": css, "d": d if points else ""})


def line(mark: ET.Element, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
    path(mark, [(x1, y1), (x2, y2)], css)


def circle(mark: ET.Element, x: float, y: float, r: float, css: str, says: str) -> None:
    spot = {"class": css, "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{r:g}"}
    title(ET.SubElement(mark, "circle", spot), says)


def text(mark: ET.Element, x: float, y: float, shown: str, css: str, says: str = "") -> ET.Element:
    element = ET.SubElement(mark, "text", {"class": css, "x": f"{x:.1f}", "y": f"{y:.1f}"})
    element.text = clean(shown)
    if says:
        title(element, says)
    return element


def title(element: ET.Element, text: str) -> None:
    ET.SubElement(element, "title").text = clean(text)


def as_text(svg: ET.Element, label: str) -> str:
    svg.set("aria-label" if label else "aria-hidden", clean(label) or "true")
    return ET.tostring(svg, encoding="unicode")


def checked(svg: str) -> str:
    """The same, after a look that a drawing holds nothing that could act or load."""
    for element in ET.fromstring(svg).iter():
        odd = set(element.attrib) - _ATTRIBUTES
        assert element.tag in _TAGS, f"<{element.tag}> in a figure"
        assert not odd, f"attributes {odd} in a figure"
    return svg


_TAGS = {"svg", "g", "path", "circle", "rect", "line", "text", "tspan", "title"}
_ATTRIBUTES = {
    *("viewBox", "class", "role", "aria-label", "aria-hidden", "transform", "d"),
    *("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "rx", "width", "height"),
}
