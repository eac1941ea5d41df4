"""Errors under shifted images: as trained, and with statistics re-estimated from a few of them."""

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis, Group, Series
from normlab.lab.differences import paired, plural
from normlab.lab.report import draw
from normlab.lab.report.sections import Figure, Section
from normlab.lab.report.sentences import signed, spread_of
from normlab.lab.report.tables import Table, clean

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_TITLE = "Statistics re-estimated from a few images"
_NOTE = (
    "Validation error in % of the last weights, mean ± standard deviation over seeds. As trained: "
    "with running averages. Then with the statistics of so many images, which are not among those "
    "judged; a run's error is the mean over up to three sets of them. Without a shift the images "
    "are training images and all validation images are judged, under a shift half of them. —: "
    "there is nothing to re-estimate, or so few images have no finite statistics."
)
_COLOURS = 8


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """What few images of a domain do for batch norm, where runs were judged so."""
    made = table(a)
    if not made.rows:
        return None
    return Section("shifts", _TITLE, sentences=sentences(a), figures=[figure(a)], tables=[made])


def table(a: Analysis) -> Table:
    """A row for each shift, norm and batch size."""
    counts = _counts(a)
    rows = [
        [shift, s.label, "any" if x is None else str(x),
         *(spread_of(list(_by_seed(g, shift, count).values())) for count in counts)]
        for shift, s, x, g in _judged(a)
    ]  # fmt: skip
    columns = ["shift", "norm", a.x_name, *(f"{c:,}" if c else "as trained" for c in counts)]
    return Table(_TITLE, columns, rows, _NOTE)


def sentences(a: Analysis) -> list[str]:
    """For each norm that was re-estimated: from how many images on it is better than as trained."""
    said = []
    for shift, s, x, g in _judged(a):
        trained = _by_seed(g, shift, 0)
        found = {c: d for c in _counts(a) if c and (d := paired(_by_seed(g, shift, c), trained))}
        if not found:
            continue
        at = "" if x is None else f" at a {a.x_name} of {x}"
        where = "Without a shift" if shift == "none" else f"Under {shift}"
        better = [c for c, d in found.items() if d.significant and d.value < 0]
        if better:
            best = min(better, key=lambda c: found[c].value)
            rest = (
                f"is better with the statistics of {plural(min(better), 'image')} than as it was "
                f"trained, most with {best:,} ({signed(found[best].value)} points, "
                f"{plural(found[best].num_seeds[0], 'seed')})"
            )
        else:
            rest = f"is not significantly better with the statistics of up to {max(found):,} images"
        said.append(clean(f"{where}, {s.label}{at} {rest}.", 1000))
    return said


def figure(a: Analysis) -> Figure:
    """Error against the images that statistics are of, a panel for each shift."""
    found, counts = _judged(a), _counts(a)
    lines = list(dict.fromkeys((s.label, x) for _, s, x, _ in found))
    names = [label if x is None else f"{label}, {a.x_name} {x}" for label, x in lines]
    panels = [
        (shift, _panel(shift, [row for row in found if row[0] == shift], counts, lines))
        for shift in dict.fromkeys(row[0] for row in found)
    ]
    rows = [
        [shift, s.label, "any" if x is None else str(x), str(count), str(seed), f"{error:.2f}"]
        for shift, s, x, g in found
        for count in counts
        for seed, error in _by_seed(g, shift, count).items()
    ]
    columns = ["shift", "norm", a.x_name, "images", "seed", "error"]
    return Figure(
        _TITLE, "", Table(_TITLE, columns, rows, "In %; 0 images is as trained."), note=_NOTE,
        panels=panels, legend=[(f"c{i % _COLOURS}", name) for i, name in enumerate(names)],
    )  # fmt: skip


def _panel(shift: str, found: "list[_Row]", counts: Sequence[int], lines: list) -> str:
    svg, box = draw.canvas(320, 236, left=34, right=14)
    x0, _, x1, y1 = box
    values = [v for _, _, _, g in found for c in counts for v in _by_seed(g, shift, c).values()]
    across, up = draw.scale(0, len(counts) - 1, x0 + 14, x1 - 14), draw.vertical(svg, values, box)
    for place, count in enumerate(counts):
        draw.text(
            svg, across(place), y1 + 18, draw.thousands(count) if count else "–", "tick middle"
        )
    draw.text(svg, (x0 + x1) / 2, y1 + 36, "images of statistics; –: as trained", "tick middle")
    for _, s, x, g in found:
        mark = ET.SubElement(svg, "g", {"class": f"c{lines.index((s.label, x)) % _COLOURS}"})
        errors = [(place, _by_seed(g, shift, count)) for place, count in enumerate(counts)]
        means = [(across(p), up(statistics.fmean(e.values()))) for p, e in errors if e]
        if len(means) == 1:  # a norm without statistics to re-estimate
            means.append((across(len(counts) - 1), means[0][1]))
        draw.path(mark, means, "line")
        for place, by_seed in errors:
            for seed, error in by_seed.items():
                says = f"{s.label}, seed {seed}, {counts[place]} images: {error:.2f} %"
                draw.circle(mark, across(place), up(error), 2.6, "seed", says)
    return draw.as_text(svg, f"{_TITLE}: {shift}")


_Row = tuple[str, Series, int | None, Group]


def _judged(a: Analysis) -> "list[_Row]":
    """Shifts, and the norms and batch sizes with a finished run judged under them."""
    shifts = dict.fromkeys(row.shift for r in a.results for row in r.shifted)
    return [
        (shift, s, x, g)
        for shift in shifts
        for s in a.series
        for x, g in s.groups.items()
        if _by_seed(g, shift, 0)
    ]


def _counts(a: Analysis) -> list[int]:
    """Numbers of images, 0 for as trained."""
    return sorted({row.images for r in a.results for row in r.shifted} | {0})


def _by_seed(group: Group, shift: str, images: int) -> dict[int, float]:
    found: Iterator[tuple[int, float]] = (
        (r.experiment.seed, row.error)
        for r in group.results
        if r.error is not None
        for row in r.shifted
        if (row.shift, row.images) == (shift, images) and row.error is not None
    )
    return dict(found)
