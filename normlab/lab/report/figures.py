"""Figures for papers as PNG, SVG or PDF, drawn by matplotlib.

Matplotlib is optional: the page draws its own figures.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from normlab.lab.analysis import Analysis, Group, Series
from normlab.lab.conversions import Network, networks
from normlab.lab.differences import half_width
from normlab.lab.report import ReportError
from normlab.lab.report.curves import AXES, mean_curve, recorded, train_error, validation_error
from normlab.lab.report.sentences import upper
from normlab.lab.report.tables import clean

__all__ = ["FORMATS", "save"]

FORMATS = ("png", "svg", "pdf")
_WIDTH = 3.4  # inches, a column of a paper
_RESOLUTION = 300  # dots per inch
# Okabe and Ito 2008: told apart by readers with any colour vision, and in print
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.markersize": 4,
    "svg.hashsalt": "normlab",  # so that the same numbers give the same file
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # fonts that publishers accept
    "text.parse_math": False,  # a name with two $ is a name
}
_NO_DATE: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def save(a: Analysis, folder: Path, format: str, *, by: str = "samples") -> list[Path]:
    """Draws every figure that the runs give, and returns the files.

    Args:
        folder: made if it is not there.
        format: png, svg or pdf.
        by: what error curves are drawn against: samples, epochs or steps.

    Raises:
        ImportError: matplotlib is missing.
        ReportError: there is nothing to draw, nothing recorded to draw against, or a file cannot
            be written.
    """
    drawn: dict[str, Callable[[Any], None]] = {}
    if any(g.errors for s in a.series for g in s.groups.values()):
        drawn["error"] = lambda figure: error_by_batch(a, figure)
    if any(e.validation_error is not None for r in a.results for e in r.epochs) and a.series:
        if by not in recorded(a):
            others = ", ".join(recorded(a))
            raise ReportError(f"not every run has recorded its {by}; choose one of {others}")
        drawn["curves"] = lambda figure: error_curves(a, figure, by)
    for number, network in enumerate(networks(a), start=1):
        if any(g.errors for way in network.ways for g in way.after.values()):
            name = f"conversion-{number}"
            drawn[name] = lambda figure, network=network: conversion(network, figure)  # type: ignore[misc]
    if not drawn:
        raise ReportError("no run has a result, so there is nothing to draw; train some first")
    files = []
    for name, draw in drawn.items():
        file = folder / f"{name}.{format}"
        with _figure() as figure:
            draw(figure)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(
                    file, dpi=_RESOLUTION, bbox_inches="tight", metadata=_NO_DATE[format]
                )
            except OSError as error:
                raise ReportError(
                    f"cannot write the figure {file}: {error.strerror or error}; choose a folder "
                    "you may write to"
                ) from error
        files.append(file)
    return files


def error_by_batch(a: Analysis, figure: Any) -> None:
    """Mean error over seeds against batch size, with 95 % intervals."""
    axes = figure.subplots()
    places = list(range(len(a.xs)))
    width = 0.24 / max(len(a.series), 1)
    for i, s in enumerate(a.series):
        look = _look(i)
        shift = (i - (len(a.series) - 1) / 2) * width
        points = [
            (place + shift, g.mean, g.half or 0.0)
            for place, x in zip(places, a.xs)
            if (g := s.at(x)).mean is not None
        ]
        if points:
            xs, means, halves = zip(*points)
            line = "--" if s.flat else "-"
            label = clean(s.label, 80)
            axes.errorbar(xs, means, halves, capsize=2, linestyle=line, label=label, **look)
    axes.set_xticks(places, [str(x) for x in a.xs])
    axes.set_xlabel(f"{upper(a.x_name)}, images")
    axes.set_ylabel("Validation error, %")
    _within_percent(axes)
    _legend(figure, axes)


def error_curves(a: Analysis, figure: Any, by: str = "samples") -> None:
    """Mean validation (solid) and training error (dashed), a panel for each batch size."""
    xs: Sequence[int | None] = a.xs or (None,)
    figure.set_size_inches(_WIDTH * min(len(xs), 3), 2.6 * -(-len(xs) // 3))
    panels = figure.subplots(-(-len(xs) // 3), min(len(xs), 3), squeeze=False, sharey=True)
    for axes, x in zip(panels.flat, xs):
        for i, s in enumerate(a.series):
            _curve(axes, s.at(x), by, s, i)
        axes.set_title("" if x is None else f"{upper(a.x_name)} {x}", fontsize=8)
        axes.set_xlabel(upper(AXES[by]))
    for axes in panels.flat[len(xs) :]:
        axes.remove()
    panels.flat[0].set_ylabel("Error, %")
    _legend(figure, panels.flat[0])


def conversion(network: Network, figure: Any) -> None:
    """Left the error right after conversion; right after training on, by batch size."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    places = {x: i for i, x in enumerate(network.batch_sizes)}
    for i, way in enumerate(network.ways):
        look, label = _look(i), clean(way.label, 80)
        before = list(way.before.values())
        if before:
            mean, half = sum(before) / len(before), half_width(before) or 0.0
            left.errorbar([i], [mean], [half], capsize=2, linestyle="", **look)
        points = [
            (places[x], g.mean, g.half or 0.0) for x, g in way.after.items() if g.mean is not None
        ]
        if points:
            xs, means, halves = zip(*points)
            right.errorbar(xs, means, halves, capsize=2, label=label, **look)
    left.set_xticks([])
    left.set_xlabel("Right after")
    left.set_ylabel("Validation error, %")
    right.set_xticks(list(places.values()), [str(x) for x in places])
    right.set_xlabel("Batch size trained on with")
    figure.suptitle(clean(network.label, 80), fontsize=8)
    for axes in (left, right):
        _within_percent(axes)
    _legend(figure, right)


def _curve(axes: Any, group: Group, by: str, series: Series, i: int) -> None:
    counted = [r for r in group.results if r.error is not None]
    look = {"color": _look(i)["color"], "linewidth": 1}
    for line, key in (("-", validation_error), ("--", train_error)):
        points = mean_curve(counted, key, by)
        if points:
            label = clean(series.label, 80) if line == "-" else None
            axes.plot(*zip(*points), line, label=label, **look)


def _within_percent(axes: Any) -> None:
    """No room for errors below 0 or above 100 %, where intervals of few seeds may reach."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), min(high, 100))


def _legend(figure: Any, axes: Any) -> None:
    """Inside the axes for a few short names, below them for more."""
    marks, names = axes.get_legend_handles_labels()
    if len(names) > 4 or max(map(len, names), default=0) > 16:
        rows = -(-len(names) // 2)
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.16 * rows)
        figure.legend(marks, names, loc="outside lower center", ncols=2 if rows > 1 else 1)
    elif names:
        axes.legend()


def _look(i: int) -> dict[str, Any]:
    return {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKS[i % len(_MARKS)]}


@contextlib.contextmanager
def _figure() -> Iterator[Any]:
    """An empty figure of a paper's column, whatever the user's own matplotlib settings."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'figures for papers need matplotlib: pip install "normlab[figures]"; '
            "the page from normlab report needs nothing more and has SVG and PNG to download"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(_WIDTH, 2.6), layout="constrained")
