"""The pages of docs/norms, from the norms themselves: python scripts/norm_pages.py

A page a norm, with its docstring and a picture of what it averages over, and an index. Pages of
norms that are no more are removed.
"""

import re
import textwrap
from pathlib import Path
from xml.etree import ElementTree as ET

from normlab.lab.report import catalogue
from normlab.lab.report.catalogue import Entry
from normlab.lab.report.norm_pictures import Picture
from normlab.surgery import weights

FOLDER = Path(__file__).parent.parent / "docs" / "norms"
CELL, GAP, LINE = 16, 14, 14  # pixels: of a value, between panels, of text
# readable on white and on black, as a picture does not know the theme of the page it is in
INK, MARK = "#7d8590", "#2f81f7"

INTRODUCTION = """\
A norm averages over what disappears to the right of the arrow: see any page for a picture. The same
is in a terminal: `normlab norms`, `normlab norms group`. One of your own is
[ten lines](../own_norm.md). These pages are made by `scripts/norm_pages.py`."""


def main() -> None:
    made = pages()
    for name, text in made.items():
        file = FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", newline="\n")
    for name in sorted(written() - made.keys()):
        (FOLDER / name).unlink()
    print(f"{FOLDER.name}: {len(made)} files")


def written() -> set[str]:
    """The files that are there."""
    return {
        file.relative_to(FOLDER).as_posix()
        for kind in ("*.md", "*.svg")
        for file in FOLDER.rglob(kind)
    }


def pages() -> dict[str, str]:
    """What each file of the folder has to hold."""
    made = {}
    found = list(catalogue.families())
    for _, entries in found:
        for e in entries:
            made[f"{e.names[0]}.md"] = page(e)
            made.update((f"images/{name}", svg(p)) for name, p in zip(image_names(e), e.pictures))
    made["README.md"] = index(found)
    return made


def index(found: list[tuple[str, list[Entry]]]) -> str:
    """The table of contents: the families of the catalogue."""
    text = ["# Norms", "", INTRODUCTION, ""]
    for title, entries in found:
        text += [f"## {plain(title)}", "", "| norm | averages over | what it is | source |"]
        text += ["|---|---|---|---|"]
        for e in entries:
            names = ", ".join(f"`{n}`" for n in e.names[1:])
            cells = [
                f"[`{e.names[0]}`]({e.names[0]}.md){', ' if names else ''}{names}",
                e.pattern if e.pattern in ("composed", "nothing") else f"`{e.pattern}`",
                plain(e.sentence),
                plain(e.source),
            ]
            text.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        text.append("")
    return "\n".join(text)


def page(e: Entry) -> str:
    """A page: what the docstring says, the picture, what is learned and kept."""
    doc, _, examples = e.doc.partition("\n>>> ")
    text = [f"# {e.names[0]}", ""]
    if len(e.names) > 1:
        text += [f"Also {', '.join(f'`{n}`' for n in e.names[1:])}; the class is `{e.title}`.", ""]
    for paragraph in doc.strip().split("\n\n"):
        text += [*block(paragraph), ""]
    for name, p in zip(image_names(e), e.pictures):
        title = p.title.strip('"')
        text += [f"![{title}](images/{name})", "", plain(p.caption), ""]
    if not e.pictures:
        text += ["Nothing is averaged.", ""]
    text += ["## In a spec", ""]
    text += [] if e.names[0] in weights.NORMS else [f"* `{e.names[0]}`"]
    text += [f"* `{form}`: {of if ' ' in of else f'`{of}`'}" for form, of in e.forms]
    learned, kept = (", ".join(f"`{n}`" for n in names) for names in (e.learned, e.kept))
    kept = kept.replace("`running statistics`", "running statistics")
    text += ["", f"It learns {learned or 'nothing'} and keeps {kept or 'no state'}."]
    depends = "depends" if e.uses_batch else "does not depend"
    text += [f"In training, an output {depends} on the other samples of the batch.", ""]
    if examples:
        text += ["## Example", "", "```python", f">>> {examples.strip()}", "```", ""]
    return "\n".join([*text, "[All norms](README.md)", ""])


def block(paragraph: str) -> list[str]:
    """A paragraph of a docstring as Markdown: a section, an equation or prose."""
    heading, _, rest = paragraph.partition(":")
    if heading in ("Args", "Raises"):
        items = re.split(r"\n(?=\S)", textwrap.dedent(rest.strip("\n")))
        title = {"Args": "Arguments", "Raises": "Errors"}[heading]
        pairs = (" ".join(item.split()).partition(": ") for item in items)
        return [f"## {title}", "", *(f"* `{name}`: {plain(what)}" for name, _, what in pairs)]
    if heading in ("Shape", "Source"):
        return [f"**{heading}.** {plain(' '.join(rest.split()))}"]
    if re.match(r"[\w']+(\([^)]*\))? = ", paragraph):
        return ["```", *paragraph.splitlines(), "```"]
    return [plain(" ".join(paragraph.split()))]


def plain(text: str) -> str:
    """Prose in which * _ < are no markup; what is between backticks stays."""
    parts = re.split(r"(`[^`]*`|https?://\S+)", text)
    return "".join(p if i % 2 else re.sub(r"([*_<])", r"\\\1", p) for i, p in enumerate(parts))


def image_names(e: Entry) -> list[str]:
    """A file for each picture."""
    stem = e.names[0]
    return [f"{stem}.svg" if i == 0 else f"{stem}-{i + 1}.svg" for i in range(len(e.pictures))]


def svg(p: Picture) -> str:
    """A picture as a drawing: a panel for each sample, in it a row for each channel."""
    panel, row, column = p.axes
    rows, columns = len(p.marked[0]), len(p.marked[0][0])
    wide = max(columns * CELL, 7 * len(f"{panel} {len(p.marked)}"))
    left = 7 * len(f"{row} {rows}") + 10
    width = left + len(p.marked) * (wide + GAP)
    top = 2 * LINE + 8
    height = top + rows * CELL + 2 * LINE
    size = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
    ET.SubElement(root, "title").text = f"{p.title}. {p.caption}"
    words = {"fill": INK, "font-family": "sans-serif", "font-size": "12"}
    text = ET.SubElement(root, "g", words)
    _write(text, left, LINE, p.title)
    cells = ET.SubElement(root, "g", {"stroke": INK, "fill": "none"})
    marks = ET.SubElement(root, "g", {"stroke": INK, "fill": MARK})
    for i, rows_of_panel in enumerate(p.marked):
        x = left + i * (wide + GAP)
        _write(text, x, 2 * LINE + 2, f"{panel} {i + 1}")
        for r, values in enumerate(rows_of_panel):
            y = top + r * CELL
            if i == 0:
                _write(text, 0, y + CELL - 4, f"{row} {r + 1}")
            for c, marked in enumerate(values):
                place = {"x": str(x + c * CELL), "y": str(y)}
                side = {"width": str(CELL - 2), "height": str(CELL - 2)}
                ET.SubElement(marks if marked else cells, "rect", {**place, **side})
    _write(text, left, height - LINE // 2, f"from left to right: {column}s")
    ET.indent(root, "")
    return ET.tostring(root, encoding="unicode") + "\n"


def _write(parent: ET.Element, x: int, y: int, words: str) -> None:
    ET.SubElement(parent, "text", {"x": str(x), "y": str(y)}).text = words


if __name__ == "__main__":
    main()
