"""A figure of the page as an SVG file that stands alone, with its colours, panels and legend."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from normlab.lab.report import draw
from normlab.lab.report.sections import Figure

_HERE = Path(__file__).parent
_GAP = 16.0
_LEGEND_ROW, _HEADING, _MARGIN = 20.0, 24.0, 8.0
_LEGEND_COLUMNS = 3


def alone(figure: Figure) -> str:
    """One element `svg` that needs no style sheet, in light colours on paper.

    Panels stand two in a row; of several choices it has the chosen one.
    """
    panels = list(dict(figure.choices).get(figure.chosen, figure.panels)) or [("", figure.svg)]
    drawings = [(name, ET.fromstring(draw.checked(svg))) for name, svg in panels]
    sizes = [tuple(map(float, d.attrib["viewBox"].split()[2:])) for _, d in drawings]
    columns = min(2, len(drawings))
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    head = _HEADING if any(name for name, _ in drawings) else 0.0
    top = _MARGIN + _LEGEND_ROW * -(-len(figure.legend) // _LEGEND_COLUMNS)
    whole = columns * (width + _GAP), top + -(-len(drawings) // columns) * (height + head)
    size = {"width": f"{whole[0]:g}", "height": f"{whole[1]:g}"}
    place = {"viewBox": f"0 0 {whole[0]:g} {whole[1]:g}", "xmlns": "http://www.w3.org/2000/svg"}
    svg = ET.Element("svg", {**place, **size, "role": "img"})
    ET.SubElement(svg, "style").text = _style()
    ET.SubElement(svg, "rect", {**size, "class": "paper"})
    for i, (css, label) in enumerate(figure.legend):
        x = _GAP + i % _LEGEND_COLUMNS * whole[0] / _LEGEND_COLUMNS
        y = _MARGIN + 8 + _LEGEND_ROW * (i // _LEGEND_COLUMNS)
        draw.line(ET.SubElement(svg, "g", {"class": css}), x, y, x + 22, y, "line")
        draw.text(svg, x + 30, y + 4, draw.short(label, 28), "start")
    for i, ((name, drawing), (w, h)) in enumerate(zip(drawings, sizes)):
        x, y = _GAP / 2 + i % columns * (width + _GAP), top + i // columns * (height + head)
        if name:
            draw.text(svg, x + 4, y + 18, name, "heading start")
        for key, value in {"x": x, "y": y + head, "width": w, "height": h}.items():
            drawing.set(key, f"{value:g}")
        svg.append(drawing)
    return draw.as_text(svg, figure.title) + "\n"


def _style() -> str:
    """The page's own rules for figures, with the colours it has in daylight."""
    page = (_HERE / "page.css").read_text(encoding="utf-8")
    colours = re.findall(r"--(\w+): light-dark\((#\w+),", page)
    root = "".join(f"--{name}: {value}; " for name, value in colours)
    return (
        f"svg {{ {root}font: 12px system-ui, Helvetica, Arial, sans-serif; }}\n"
        ".paper { fill: var(--paper); } svg text.heading { font-weight: 600; }\n"
        f"{(_HERE / 'figure.css').read_text(encoding='utf-8')}"
    )
