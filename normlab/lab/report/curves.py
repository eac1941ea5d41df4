"""Error while a network learns, for a comparison and for one run."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis, Epoch, Result
from normlab.lab.report import draw
from normlab.lab.report.charts import colour_classes, run_title
from normlab.lab.report.sections import Figure
from normlab.lab.report.sentences import upper
from normlab.lab.report.tables import Table

AXES = {"samples": "training images seen", "epochs": "epochs", "steps": "steps of the optimizer"}
_MAX_POINTS = 60  # of a curve; a pixel holds no more
_MANY_RUNS, _FEW_POINTS = 60, 20  # thin lines beyond so many runs are a haze
_MAX_ROWS = 12  # of a curve's table


def place(epoch: Epoch, by: str) -> int | None:
    """Where the end of an epoch is on one of the AXES; None where that was not recorded."""
    return {"samples": epoch.samples, "epochs": epoch.epoch, "steps": epoch.step}[by]


def recorded(a: Analysis) -> list[str]:
    """Those of the AXES that every epoch has a place on."""
    shown = [e for r in a.results for e in r.epochs]
    return [by for by in AXES if all(place(e, by) is not None for e in shown)]


def error_curves(a: Analysis, by: str = "samples") -> list[tuple[str, str]]:
    """Error against one of the AXES, a panel (its title and figure) for each batch size."""
    own = {id(r) for s in a.series for group in s.groups.values() for r in group.results}
    drawn = [r for r in a.results if r.epochs and id(r) in own]
    shown = [e for r in drawn for e in r.epochs]
    values = [v for e in shown for v in (e.train_error, e.validation_error) if v is not None]
    if not values:
        return []
    last = max(place(e, by) or 0 for e in shown) or 1
    points = _MAX_POINTS if len(drawn) <= _MANY_RUNS else _FEW_POINTS
    panels, colours = [], colour_classes(a)
    for x in a.xs or (None,):
        svg, box = draw.canvas(320, 236, left=34, right=14)
        x0, _, x1, y1 = box
        across, up = draw.scale(0, last, x0, x1), draw.vertical(svg, values, box)
        for tick in [t for t in draw.ticks(0, last, 3) if t <= last]:
            draw.text(svg, across(tick), y1 + 18, draw.thousands(tick), "tick middle")
        draw.text(svg, (x0 + x1) / 2, y1 + 36, AXES[by], "tick middle")
        for series in a.series:
            mark = ET.SubElement(svg, "g", {"class": colours[series.label]})
            _curves(mark, series.at(x).results, across, up, points, by)
        title = "" if x is None else f"{upper(a.x_name)} {x}"
        panels.append((title, draw.as_text(svg, f"Error curves. {title}")))
    return panels


def _curves(
    mark: ET.Element,
    results: Sequence[Result],
    across: Callable,
    up: Callable,
    points: int,
    by: str,
) -> None:
    for r in results:
        for key, css in ((train_error, "seed-curve train"), (validation_error, "seed-curve")):
            for part in _parts(r.epochs, key, points, by):
                path = draw.path(mark, [(across(at), up(error)) for at, error in part], css)
                draw.title(path, run_title(r))
    counted = [r for r in results if r.error is not None and r.epochs]
    for key in (train_error, validation_error):
        mean = [(across(at), up(v)) for at, v in _thin(mean_curve(counted, key, by))]
        draw.path(mark, mean, "curve train" if key is train_error else "curve")


def train_error(epoch: Epoch) -> float | None:
    return epoch.train_error


def validation_error(epoch: Epoch) -> float | None:
    return epoch.validation_error


def _parts(
    epochs: Sequence[Epoch], key: Callable, points: int, by: str = "samples"
) -> Iterator[list[tuple[int, float]]]:
    """Stretches of a curve between missing values, as place on the axis and error."""
    part: list[tuple[int, float]] = []
    for epoch in _thin(epochs, points):
        if key(epoch) is not None and (at := place(epoch, by)) is not None:
            part.append((at, key(epoch)))
        elif part:
            yield part
            part = []
    if part:
        yield part


def mean_curve(
    results: Sequence[Result], key: Callable[[Epoch], float | None], by: str = "samples"
) -> list[tuple[int, float]]:
    """Mean over the runs at every place on the axis where all of them have a number."""
    found: dict[int, list[float]] = {}
    for r in results:
        for e in r.epochs:
            at, value = place(e, by), key(e)
            if at is not None and value is not None:
                found.setdefault(at, []).append(value)
    return [(at, statistics.fmean(v)) for at, v in sorted(found.items()) if len(v) == len(results)]


def _thin(points: Sequence, most: int = _MAX_POINTS) -> list:
    """At most so many of the points as can be seen, with the last one."""
    step = math.ceil(len(points) / most) or 1
    kept = list(points[::step])
    return kept if not kept or kept[-1] is points[-1] else [*kept, points[-1]]


def mean_curves(a: Analysis) -> Table:
    """Mean error of every norm as it learns, at some of the epochs."""
    rows = []
    for series in a.series:
        for x, group in series.groups.items():
            counted = [r for r in group.results if r.error is not None and r.epochs]
            training = dict(mean_curve(counted, train_error))
            epochs = {e.samples: e for r in counted[:1] for e in r.epochs}
            for samples, error in _thin(mean_curve(counted, validation_error), _MAX_ROWS):
                at = (_count(place(epochs[samples], by)) for by in ("epochs", "steps", "samples"))
                cells = *at, _percent(training.get(samples)), f"{error:.2f}"
                rows.append([series.label, "any" if x is None else str(x), *cells])
    columns = ["norm", a.x_name, "epochs", "steps", "training images", "training error"]
    columns.append("validation error")
    note = f"Errors in %, mean over seeds; at most {_MAX_ROWS + 1} epochs of each curve."
    return Table("Error while learning", columns, rows, note)


def run_curve(r: Result) -> Figure | None:
    """The error of one run while it learned; None if it has measured none."""
    values = [v for e in r.epochs for v in (e.train_error, e.validation_error) if v is not None]
    if not values:
        return None
    last = max(e.samples for e in r.epochs) or 1
    svg, box = draw.canvas(360, 190, left=34, right=14)
    x0, _, x1, y1 = box
    across, up = draw.scale(0, last, x0, x1), draw.vertical(svg, values, box)
    draw.text(svg, x0, y1 + 18, "0", "tick middle")
    draw.text(svg, x1, y1 + 18, f"{last:,}", "tick end")
    draw.text(svg, (x0 + x1) / 2, y1 + 36, "training images seen", "tick middle")
    mark = ET.SubElement(svg, "g", {"class": "c1"})
    for key, css in ((train_error, "curve train"), (validation_error, "curve")):
        for part in _parts(r.epochs, key, _MAX_POINTS // 2):
            draw.path(mark, [(across(seen), up(error)) for seen, error in part], css)
    measured = [(e.samples, v) for e in r.epochs if (v := e.validation_error) is not None]
    for samples, error in _thin(measured, _MAX_ROWS):
        says = f"{r.name}, seed {r.experiment.seed}, {samples:,} images: {error:.2f} %"
        draw.circle(mark, across(samples), up(error), 2.6, "seed", says)
    rows = [
        [f"{e.samples:,}", _percent(e.train_error), _percent(e.validation_error)]
        for e in _thin(r.epochs, _MAX_ROWS)
    ]
    columns = ["training images", "training error", "validation error"]
    title, note = f"Error of {r.name}", "Error in %. Solid: validation; dashed: training."
    return Figure(title, draw.as_text(svg, title), Table(title, columns, rows), note)


def _count(value: int | None) -> str:
    return "—" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"
