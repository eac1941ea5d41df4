"""The findings of a comparison in words, as on the page and in the terminal."""

import math
import statistics
from collections.abc import Sequence

from normlab.lab.analysis import Analysis, Difference, Group, Series, family, plural, welch


def sentence(name: str, other: str, x: int, d: Difference) -> str:
    """A difference in words."""
    return _verdict(name, other, d, f" at {x}")


def headline(a: Analysis) -> list[str]:
    """The answer in one to four sentences, the most important first."""
    # imported here, since conversion.py takes its words from this file
    from normlab.lab.report import conversion

    if a.is_about_conversions and (said := conversion.headline(a)):
        return said
    pairs = a.differences()
    if not pairs:
        return conversion.headline(a) or [_lowest(a)]
    # The question is group norm's. Without it the best norm is named, which flatters it a little.
    of_group = [p for p in pairs if family(p[0].norm) == "group"]
    lead = (of_group or [min(pairs, key=lambda p: _mean(p[0].at(p[2])))])[0][0]
    ours = [p for p in pairs if p[0] is lead]
    (_, batch, small, d), (_, _, large, d_large) = ours[0], ours[-1]
    errors = f"{spread(lead.at(small))} against {spread(batch.at(small))} % validation error"
    said = [f"At a {a.x_name} of {small}, {_verdict(lead.label, batch.label, d)}: {errors}."]
    if large != small:
        said.append(upper(sentence(lead.label, batch.label, large, d_large)) + ".")
    alike = [p for p in pairs if p[0].norm == lead.norm and p[2] == small]
    elsewhere = [d for series, _, _, d in alike if series.others != lead.others]
    if elsewhere:
        said.append(f"At {small}, {_counted(lead.norm, elsewhere)}.")
    same = (s for s in a.series if s.others == lead.others)
    best = min(same, key=lambda s: _mean(s.at(small)))
    if best not in (lead, batch):
        lowest = f"{spread(best.at(small))} % ({_seeds(best.at(small))})"
        said.append(f"The lowest mean at {small} is that of {best.label}, {lowest}.")
    return said


def about_batch_norm(a: Analysis) -> list[str]:
    """Whether batch norm suffers at its smallest batch, and what its training error says of why."""
    said = []
    for series in (s for s in a.series if family(s.norm) == "batch"):
        lost = [x for x, g in series.groups.items() if x is not None and g.lost and not g.errors]
        for x in lost:
            said.append(f"{upper(_name(series))} has no result at {x}: {lost_runs(series.at(x))}.")
        sizes = [x for x, g in series.groups.items() if x is not None and g.errors]
        if len(sizes) > 1:
            said.append(_suffers(series, min(sizes), max(sizes)))
    return said


def caveats(a: Analysis) -> list[str]:
    """What a reader has to know before trusting a comparison."""
    said = []
    if a.companions:
        fields = ", ".join(a.companions)
        said.append(f"Runs that are compared here also differ in {fields}; see the setting.")
    if a.repeated:
        said.append(
            f"{plural(len(a.repeated), 'run')} left out: the same setting and seed was there twice."
        )
    return said


def spread(group: Group) -> str:
    """Mean and standard deviation over seeds, in percent; — without a result."""
    return spread_of(group.errors)


def spread_of(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; — without a value.

    >>> spread_of([9.0, 11.0]), spread_of([9.0]), spread_of([])
    ('10.0 ± 1.4', '9.0', '—')
    """
    if not values:
        return "—"
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    std = statistics.stdev(values)
    digits = 2 if 0 < std < 0.095 else 1
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def lost_runs(group: Group) -> str:
    """The runs of a group that are in no mean, counted by what became of them."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(group.lost.items()))


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a real minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _verdict(name: str, other: str, d: Difference, at: str = "") -> str:
    better = "better" if d.value < 0 else "worse"
    if d.half is None:
        why = "one seed" if min(d.num_seeds) < 2 else "no spread over seeds"
        what = f"{abs(d.value):.1f} points {better} than"
        what = what if abs(d.value) >= 0.05 else "within 0.1 points of"
        return f"{name} is {what} {other}{at} ({d.seeds}; {why}, so no interval)"
    if d.significant:
        points = f"{abs(d.value):.1f} ± {d.half:.1f} points {better}"
        return f"{name} is {points} than {other}{at} ({d.seeds})"
    points = f"{signed(d.value)} ± {d.half:.1f} points"
    return f"no significant difference between {name} and {other}{at} ({points}, {d.seeds})"


def _counted(norm: str, found: Sequence[Difference]) -> str:
    """In how many other settings a norm is ahead of batch norm, and behind it."""
    sure = [d for d in found if d.significant]
    better = sum(d.value < 0 for d in sure)
    counts = f"better in {better or 'none'} and worse in {len(sure) - better or 'none'}"
    return f"in {plural(len(found), 'other setting')} {norm} is significantly {counts}"


def _suffers(series: Series, small: int, large: int) -> str:
    d = welch(series.at(small).errors, series.at(large).errors)
    assert d is not None
    name, few, many = _name(series), _training(series, small), _training(series, large)
    half = "" if d.half is None else f" ± {d.half:.1f}"
    change = f"{signed(d.value)}{half} points of validation error from {large} to {small}"
    change = f"({change}; {d.seeds})"
    trained = f"Its training error is {_percent(few)} at {small} and {_percent(many)} at {large}"
    if d.half is None:
        return f"Without a spread over seeds, nothing is certain about {name} {change}. {trained}."
    if d.significant and d.value < 0:
        return f"The small batch does not hurt {name}, it helps {change}. {trained}."
    if not d.significant and (d.effect or 0) < 1:
        most = max(d.value + d.half, 0)
        return (
            f"{upper(name)} does not measurably suffer from its smallest batch {change}; the "
            f"interval rules out a loss above {most:.1f} points. {trained}. Its statistics are "
            "taken over images and positions, so large feature maps can make up for few images."
        )
    hurts = f"The small batch hurts {name} {change}."
    if not d.significant:
        hurts = (
            f"Whether the small batch hurts {name} cannot be told from these seeds, which differ "
            f"too much {change}; more seeds would tell."
        )
    if few is None or many is None:
        return hurts
    if few - many < d.value / 2:
        return (
            f"{hurts} {trained}: it learns, so the higher validation error points to the running "
            "statistics, which replace those of the batch after training."
        )
    return f"{hurts} {trained}: training itself is worse, not only the running statistics."


def _name(series: Series) -> str:
    return "batch norm" if series.label == "batch" else series.label


def _lowest(a: Analysis) -> str:
    cells = [(s, x, g) for s in a.series for x, g in s.groups.items() if g.errors]
    if not cells:
        return "No run has finished, so there is nothing to compare yet."
    series, x, group = min(cells, key=lambda c: _mean(c[2]))
    at = f" at a {a.x_name} of {x}" if x is not None else ""
    lowest = "The lowest mean validation error" if len(cells) > 1 else "The validation error"
    return f"{lowest} is that of {series.label}{at}, {spread(group)} % ({_seeds(group)})."


def _training(series: Series, x: int) -> float | None:
    return series.at(x).average(lambda r: r.train_error)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} %"


def _mean(group: Group) -> float:
    return math.inf if group.mean is None else group.mean


def _seeds(group: Group) -> str:
    return plural(len(group.errors), "seed")


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]
