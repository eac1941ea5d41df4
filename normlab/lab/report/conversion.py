"""What networks lose when their norms are converted, and what they regain."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from normlab.lab.analysis import Analysis
from normlab.lab.conversions import Network, Way, networks
from normlab.lab.differences import Difference, plural
from normlab.lab.report import charts, draw
from normlab.lab.report.sections import Figure, Section
from normlab.lab.report.sentences import lost_runs, signed, spread, spread_of
from normlab.lab.report.tables import Table, clean, interval, verdict

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_CHOSEN = "The best way is chosen by the runs it is judged by, which flatters it a little."
_NUM_COLOURS = 8  # as in page.css; a way without one is in the tables only


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Error right after conversion and after training on, for each network."""
    found, said = networks(a), headline(a)
    if not found:
        return None
    # of a page about conversions, sentences and figure are the headline
    shown = [_CHOSEN] if a.is_about_conversions else [*said, _CHOSEN]
    figure = None if a.is_about_conversions else trained_on(found)
    return Section(
        "conversion",
        "Conversion",
        sentences=[clean(text, 5000) for text in shown] if said else [],
        more=[clean(text, 5000) for network in found for text in sentences(network, found)],
        figures=[figure] if figure else [],
        tables=[errors(network) for network in found],
        folded=[table for network in found if (table := against_control(network)).rows],
    )


def trained_on(found: Sequence[Network]) -> Figure | None:
    """Error after training on against batch size, a panel for each network, a line for each way."""
    labels = list(dict.fromkeys(way.label for network in found for way in network.ways))
    # the source's own norm first, for it is batch norm and has its colour on every page
    labels.sort(key=lambda label: all(n.control is None or n.control.label != label for n in found))
    colours = {label: f"c{i}" for i, label in enumerate(labels[:_NUM_COLOURS])}
    panels = [(n.label, svg) for n in found if (svg := _panel(n, colours))]
    if not panels:
        return None
    rows = [
        [n.label or "—", way.label, str(x), str(r.experiment.seed), f"{r.error:.2f}", r.name]
        for n in found
        for way in n.ways
        for x, group in way.after.items()
        for r in group.results
        if r.error is not None
    ]
    columns = ["network", "way", "batch size", "seed", "validation error", "run"]
    note = (
        "Validation error in % after training on, against the batch size. Each small dot is one "
        "run; lines join the means over seeds."
    )
    title = "Error after conversion and training on"
    table = Table(title, columns, rows, "In %.")
    legend = [(css, label) for label, css in colours.items()]
    return Figure(title, "", table, note=note, panels=panels, legend=legend)


def _panel(network: Network, colours: Mapping[str, str]) -> str:
    """The drawing of one network; "" without a result."""
    ways = [way for way in network.ways if way.label in colours]
    values = [error for way in ways for group in way.after.values() for error in group.errors]
    if not values:
        return ""
    xs = network.batch_sizes
    svg, box = draw.canvas(320, 236, left=34, right=14)
    x0, _, x1, y1 = box
    across, up = draw.scale(0, len(xs) - 1, x0 + 14, x1 - 14), draw.vertical(svg, values, box)
    for place, x in enumerate(xs):
        draw.text(svg, across(place), y1 + 18, str(x), "tick middle")
    draw.text(svg, (x0 + x1) / 2, y1 + 36, "batch size trained on with", "tick middle")
    for way in ways:
        mark = ET.SubElement(svg, "g", {"class": colours[way.label]})
        counted = [(across(p), way.after[x]) for p, x in enumerate(xs) if x in way.after]
        means = [(at, up(g.mean)) for at, g in counted if g.mean is not None]
        draw.path(mark, means, "line")
        for at, group in counted:
            for r in group.results:
                if r.error is not None:
                    says = f"{way.label}, {charts.run_title(r)}"
                    draw.circle(mark, at, up(r.error), 2.6, "seed", says)
    return draw.as_text(svg, f"Error after conversion and training on. {network.label}")


def tables(a: Analysis) -> list[Table]:
    """All tables of the section."""
    found = networks(a)
    return [table for n in found for table in (errors(n), against_control(n)) if table.rows]


def headline(a: Analysis) -> list[str]:
    """What conversion costs at once and after training on, over all networks; [] without runs."""
    found = networks(a)
    losses: dict[str, list[float]] = {}
    for network in found:
        for way in network.ways:
            if way.converted and (d := network.loss(way)):
                losses.setdefault(way.label, []).append(d.value)
    if not losses:
        return []
    told = [f"{_range(values)} with {label}" for label, values in losses.items()]
    over = f" on {len(found)} networks" if len(found) > 1 else ""
    said = [f"Right after conversion{over}, the error changes by, in points: {'; '.join(told)}."]
    smallest = min(x for network in found for x in network.batch_sizes)
    at = [text for network in found for text in _after(network, smallest, _on(network, found))]
    return [*said, *at]


def _range(values: Sequence[float]) -> str:
    low, high = signed(min(values)), signed(max(values))
    return low if low == high else f"{low} to {high}"


def errors(network: Network) -> Table:
    """A row for each way: error right after, and after training on at every batch size."""
    xs = network.batch_sizes
    rows = [
        [way.label, spread_of(list(way.before.values())), *(_cell(way, x) for x in xs)]
        for way in network.ways
    ]
    if network.source:
        before = spread_of(list(network.source.values()))
        rows.insert(0, ["source, before conversion", before, *([""] * len(xs))])
    note = (
        "Validation error in %, mean ± standard deviation over seeds. fresh: new layers. affine: "
        "weight and bias of the source. function: weight and bias that make up for the groups' "
        "moments. strength: statistics shrunk by so much to the source's; 1 is the source frozen."
    )
    if network.control:
        note += f" {network.control.label}: not converted."
    columns = ["way", "right after", *(f"trained on at {x}" for x in xs)]
    return Table(f"Conversion{_of(network)}", columns, rows, note)


def against_control(network: Network) -> Table:
    """Every way minus the source's own norm, both trained on at one batch size."""
    rows = [
        [way.label, str(x), str(d.num_seeds[0]), signed(d.value), interval(d), verdict(d)]
        for way in network.ways
        for x in network.batch_sizes
        if (d := network.against_control(way, x))
    ]
    control = network.control.label if network.control else ""
    note = (
        f"Validation error after training on minus that of {control}, not converted, seed by seed, "
        "in points: below 0 is better. Interval of the paired t-test."
    )
    columns = ["way", "batch size", "seeds", "difference", "95 % interval", "verdict"]
    return Table(f"Conversion against training on as it was{_of(network)}", columns, rows, note)


def sentences(network: Network, all: Sequence[Network]) -> list[str]:
    """What conversion costs at once, and who is ahead after training on."""
    said, on = [], _on(network, all)
    losses = [(way, d) for way in network.ways if way.converted and (d := network.loss(way))]
    if losses:
        told = "; ".join(f"{way.label} {_points(d)}" for way, d in losses)
        seeds = plural(losses[0][1].num_seeds[0], "seed")
        said.append(f"Right after conversion{on}, the error changes by ({seeds}): {told} points.")
    for x in network.batch_sizes:
        said += _after(network, x, on)
    return said


def _after(network: Network, x: int, on: str) -> list[str]:
    """One sentence on one batch size: the best way, and whether it beats the source's norm."""
    control = network.control
    counted = [w for w in network.ways if w.converted and x in w.after and w.after[x].errors]
    if not counted:
        return []
    best = min(counted, key=lambda w: w.after[x].mean or 0.0)
    lowest = f"{best.label} has the lowest mean of the converted, {spread(best.after[x])} %"
    if control is None or x not in control.after or not control.after[x].errors:
        return [f"Trained on at a batch of {x}{on}, {lowest}."]
    d = network.against_control(best, x)
    if d is None or d.half is None:
        return [f"Trained on at a batch of {x}{on}, {lowest}; {control.label} has "
                f"{spread(control.after[x])} %, without an interval."]  # fmt: skip
    ahead = "no significant difference to"
    if d.significant:
        ahead = "better than" if d.value < 0 else "worse than"
    return [
        f"Trained on at a batch of {x}{on}, {lowest}: {ahead} {control.label} as it was, "
        f"{spread(control.after[x])} % ({_points(d)} points, {d.seeds})."
    ]


def _on(network: Network, all: Sequence[Network]) -> str:
    return f" on {network.label}" if len(all) > 1 else ""


def _points(d: Difference) -> str:
    half = "" if d.half is None else f" ± {d.half:.1f}"
    return f"{signed(d.value)}{half}"


def _cell(way: Way, x: int) -> str:
    group = way.after.get(x)
    if group is None:
        return ""
    lost = lost_runs(group)
    return f"{spread(group)}; {lost}" if lost else spread(group)


def _of(network: Network) -> str:
    return f": {network.label}" if network.label else ""
