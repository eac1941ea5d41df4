"""The sections of a comparison of norms: errors, learning, setting."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from normlab.lab.analysis import Analysis
from normlab.lab.conversions import networks
from normlab.lab.report import charts, conversion, curves, sentences, tables
from normlab.lab.report.sections import Figure, Section
from normlab.lab.report.tables import Table

if TYPE_CHECKING:
    from normlab.lab.runs import Run


def headline_figure(a: Analysis) -> Figure | None:
    """Error against batch size for every norm, or for every way of conversion if most runs are.

    None before a run has finished.
    """
    if a.is_about_conversions and (figure := conversion.trained_on(networks(a))):
        return figure
    shown = [r for s in a.series for group in s.groups.values() for r in group.results]
    counted = sum(r.error is not None for r in shown)
    if not counted:
        return None
    by_size = len(a.xs) > 1
    said = [f"Validation error of {counted} {'run' if counted == 1 else 'runs'}."]
    if by_size:
        said.append(
            "Each small dot is one run, lines join the means over seeds, bands are ± 1 standard "
            "deviation."
        )
        if any(s.flat for s in a.series):
            said.append(
                f"Dashed: the norm does not depend on the {a.x_name} and was trained once; its "
                "band spans all sizes."
            )
        said += [
            f"Far above the figure: {s.label}, {sentences.spread(s.at(None))} %."
            for s in charts.off_scale(a)
        ]
    else:
        said.append(
            "Each small dot is one run, the large dot their mean, the bar ± 1 standard deviation."
        )
    if by_size and counted < len(shown):
        said.append("A cross marks a run without a result.")
    return Figure(
        f"Validation error by {a.x_name if by_size else 'norm'}",
        charts.error_by_batch(a, 720, 372),
        _dots(a),
        note=" ".join(said),
        narrow=charts.error_by_batch(a, 360, 340),
    )


def errors(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Mean error by norm and batch size, and every norm against batch norm."""
    if all(r.error is None for r in a.results):
        return None
    return Section(
        "errors",
        "Errors",
        sentences=[*sentences.about_batch_norm(a), *sentences.caveats(a)],
        tables=[tables.errors(a), tables.differences(a)],
        more=tables.in_words(a),
        folded=[t for t in (tables.paired(a), tables.last_epochs(a)) if t.rows],
    )


def learning(a: Analysis, _: "Sequence[Run]", by: str = "samples") -> Section | None:
    """Error curves, a panel for each batch size, against what the reader chooses."""
    choices = [(name, curves.error_curves(a, name)) for name in curves.recorded(a)]
    if not choices or not choices[0][1]:
        return None
    note = (
        "Error in %. Solid: validation; dashed: training. Thick: mean over seeds; thin: each run."
    )
    if by not in dict(choices):
        note += f" Not every run has recorded its {by}, so the curves are against samples."
    if any(s.flat for s in a.series) and len(a.xs) > 1:
        note += f" Norms that do not depend on the {a.x_name} are the same in every panel."
    colours = charts.colour_classes(a)
    figure = Figure(
        "Error while learning",
        "",
        curves.mean_curves(a),
        note=note,
        choices=choices,
        chosen=by if by in dict(choices) else "samples",
        asks="against",
        legend=[(colours[s.label], s.label) for s in a.series],
    )
    return Section("learning", "Learning", figures=[figure])


def setting(a: Analysis, versions: Mapping[str, str]) -> Section | None:
    """What was equal and what was varied, and the versions used."""
    table = tables.setting(a, versions)
    return Section("setting", "Setting", tables=[table], unfolded=False) if table.rows else None


def damaged(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Folders that could not be read."""
    if not a.damaged:
        return None
    said = f"{len(a.damaged)} damaged; {len(a.results)} read."
    return Section("damaged", "Not read", sentences=[said], tables=[tables.damaged(a)])


def _dots(a: Analysis) -> Table:
    """Every dot of the headline figure."""
    rows = [
        [
            s.label,
            "any" if x is None else str(x),
            str(r.experiment.seed),
            "—" if r.error is None else f"{r.error:.2f}",
            r.name,
        ]
        for s in a.series
        for x, group in s.groups.items()
        for r in group.results
    ]
    columns = ["norm", a.x_name, "seed", "validation error", "run"]
    return Table("Validation error of every run", columns, rows, "In %; — without a result.")
