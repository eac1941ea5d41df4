"""A report as one Markdown page that reads well on GitHub: the answer first, details folded."""

import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import quote

from normlab.lab import report
from normlab.lab.analysis import Analysis
from normlab.lab.differences import plural
from normlab.lab.report import (
    comparison,
    confusion,
    conversion,
    costs,
    divisions,
    gates,
    judged,
    pairs,
    picture,
    probes,
    published,
    sentences,
    shifts,
    tables,
)
from normlab.lab.report.sections import Figure, Section
from normlab.lab.report.tables import Table, clean

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|~$"} | _ENTITIES)
_MAX_COLUMNS = 16  # of a table that fits the page
_MACHINE = ("python", "torch", "normlab", "processor", "num_threads", "device", "gpu")
_MAX_ROWS = 12  # of a table that is read; a longer one is folded


def write(
    a: Analysis, title: str, out: Path, note: str = "", runs: "Sequence[Run]" = ()
) -> list[Path]:
    """Writes the page, and its figures as SVG files beside it; returns the files.

    Args:
        note: what a reader has to know to judge the answer.
        runs: those of the analysis, for what their layers gave while they were trained.

    Raises:
        ReportError: one cannot be written.
    """
    layers = probes.section(a, runs)
    drawn = {
        "": comparison.headline_figure(a),
        "-statistics": judged.figure(a),
        "-shifts": shifts.figure(a) if shifts.table(a).rows else None,
        **{f"-layer{i}": figure for i, figure in enumerate(layers.figures if layers else (), 1)},
        "-cost": costs.figure(a),
    }
    files = {
        out.with_name(f"{out.stem}{name}.svg"): figure for name, figure in drawn.items() if figure
    }
    images = [(quote(file.name), figure) for file, figure in files.items()]
    for file, figure in files.items():
        report.write(file, picture.alone(figure))
    report.write(out, as_markdown(a, title, note=note, images=images, layers=layers))
    return [out, *files]


def as_markdown(
    a: Analysis,
    title: str = "",
    *,
    note: str = "",
    images: Sequence[tuple[str, Figure]] = (),
    layers: Section | None = None,
) -> str:
    """The answer, the figures if there are files of them, then tables; those to look up folded.

    Args:
        note: what a reader has to know to judge the answer.
        images: address and figure of each image; the first is the headline's.
        layers: what layers gave in training.
    """
    first, *others = sentences.headline(a)
    said = [*others, *sentences.about_batch_norm(a), *judged.sentences(a)]
    said += [*shifts.sentences(a), *pairs.said(a)]
    said += sentences.caveats(a)
    parts = [f"# {_escaped(title or 'Runs')}", f"**{_escaped(first)}**"]
    parts += [_image(*image) for image in images[:1]]
    parts += [f"> {_paragraph(' '.join(note.split()))}"] * bool(note)
    parts += map(_paragraph, said)
    parts += map(_shown, _read(a))
    parts += map(_paragraph, layers.sentences if layers else ())
    parts += [_image(*image) for image in images[1:]]
    looked_up = [*(layers.tables if layers else ()), *(layers.folded if layers else ())]
    parts += [_folded(table) for table in (*looked_up, *_looked_up(a)) if table.rows]
    return "\n\n".join(parts) + "\n"


def _read(a: Analysis) -> list[Table]:
    """Tables that answer something, long ones folded; empty ones left out."""
    converted = conversion.tables(a)
    found = (
        *(converted if a.is_about_conversions else ()),
        tables.errors(a),
        tables.differences(a),
        pairs.table(a),
        judged.table(a),
        shifts.table(a),
        divisions.by_groups(a),
        divisions.by_size(a),
        *divisions.matrices(a),
        *(converted if not a.is_about_conversions else ()),
        *gates.tables(a),
        tables.unfinished(a),
        tables.cost(a),
    )
    return [_without_folders(table) for table in found if table.rows]


def _looked_up(a: Analysis) -> list[Table]:
    beside = published.section(a, ())
    matrices = [m for m in confusion.matrices(a) if len(m.columns) <= _MAX_COLUMNS]
    machine = {k: v for k, v in report.versions(a.results).items() if k in _MACHINE}
    damaged = [(PurePath(path).name, why) for path, why in a.damaged]
    return [
        tables.last_epochs(a),
        confusion.pairs(a),
        confusion.images(a),
        *matrices,
        *(beside.tables if beside else ()),
        _without_folders(tables.runs(a)),
        _without_places(tables.setting(a, machine)),
        tables.damaged(dataclasses.replace(a, damaged=tuple(damaged))),
    ]


def _without_folders(table: Table) -> Table:
    """Where runs lay on the machine that made the page tells its readers nothing."""
    kept = [i for i, name in enumerate(table.columns) if name != "folder"]
    columns = [table.columns[i] for i in kept]
    rows = [[row[i] for i in kept] for row in table.rows]
    return dataclasses.replace(table, columns=columns, rows=rows)


def _without_places(table: Table) -> Table:
    """Of absolute paths only the last part, for the same reason."""
    rows = [
        [re.sub(r"(^|[\s:,])~?/(?:[^/,]+/)*", r"\1", cell) for cell in row] for row in table.rows
    ]
    return dataclasses.replace(table, rows=rows)


def _shown(table: Table) -> str:
    return _folded(table) if len(table.rows) > _MAX_ROWS else f"## {_table(table)}"


def _folded(table: Table) -> str:
    """A table behind its title, which stands in HTML and not in Markdown."""
    title = html.escape(f"{table.title}: {plural(len(table.rows), 'row')}")
    body = _table(table).partition("\n\n")[2]
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _image(address: str, figure: Figure) -> str:
    """An image and how to read it, in small print."""
    at = f" Here {figure.asks} {figure.chosen}." if len(figure.choices) > 1 else ""
    note = html.escape(clean(f"{figure.note}{at}", 5000))
    return f"![{_escaped(figure.title)}]({address})\n\n<sub>{note}</sub>"


def _table(table: Table) -> str:
    """Title, table of GitHub's Markdown, and note."""
    numeric = table.numeric or [False] * len(table.columns)
    lines = [
        _row(table.columns),
        "|" + "|".join(" ---: " if n else " --- " for n in numeric) + "|",
        *map(_row, table.rows),
    ]
    note = f"\n\n{_paragraph(table.note)}" if table.note else ""
    return f"{_escaped(table.title)}\n\n" + "\n".join(lines) + note


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _paragraph(text: str) -> str:
    """A paragraph that starts no heading and no list."""
    return re.sub(r"^([#+=-]|\d+(?=[.)]\s))", _after_backslash, _escaped(text))


def _after_backslash(start: re.Match[str]) -> str:
    mark = start[0]
    return f"{mark}\\" if mark.isdecimal() else f"\\{mark}"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no markup, link or element of its own."""
    return clean(text, 5000).translate(_MARKDOWN)
