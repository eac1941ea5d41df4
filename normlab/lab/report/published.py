"""Published numbers beside our own: never in one column, and with what makes them differ."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from normlab.lab.analysis import Analysis, Group, Series, family
from normlab.lab.norm_names import spelled_out
from normlab.lab.published import PUBLISHED, SECOND_HAND, SOURCES, Number, Published
from normlab.lab.report.sections import Section
from normlab.lab.report.sentences import spread
from normlab.lab.report.tables import Table, median

if TYPE_CHECKING:
    from normlab.lab.runs import Run

_MAX_COLUMNS = 4  # of ours, one for each setting


def section(a: Analysis, _: "Sequence[Run]") -> Section | None:
    """Every published table that these runs have something beside."""
    found = [p for p in PUBLISHED if _ours(a, p)]
    if not found:
        return None
    said = [
        "Small runs of our own are no reproduction: they stand in columns of their own, and under "
        "each table is what differs. Compare orders and trends, not numbers."
    ]
    return Section(
        "published",
        "Published results beside these runs",
        sentences=said,
        tables=[beside(a, p) for p in found],
        unfolded=False,
    )


def beside(a: Analysis, p: Published) -> Table:
    """One published table, our means where the runs at hand are of that kind, and the reasons."""
    ours = _ours(a, p)
    labels = [label for label, _ in ours]
    rows = [
        [number.what, *_values(p, number), *(column.get(number, "—") for _, column in ours)]
        for number in p.numbers
    ]
    if not rows:
        rows = [["curves only" if not p.second_hand else "no number kept", *["—"] * len(p.columns)]]
        columns = ["what", *(f"published: {c}" for c in p.columns)]
        return Table(f"{p.id}: {p.title}", columns, rows, " ".join(notes(a, p)))
    columns = ["what", *(f"published: {c}" for c in p.columns), *labels]
    return Table(f"{p.id}: {p.title}", columns, rows, " ".join(notes(a, p)))


def every(a: Analysis) -> list[Table]:
    """All published tables, whether or not anything of ours is beside them."""
    return [beside(a, p) for p in PUBLISHED]


def notes(a: Analysis, p: Published) -> list[str]:
    """Where the numbers are from, what ours are, and why they are comparable or not."""
    said = [f"Published in: {SOURCES[p.source]}. {p.setting[:1].upper()}{p.setting[1:]}."]
    if p.second_hand or any(n.second_hand for n in p.numbers):
        said.append(f"{SECOND_HAND} second-hand.")
    if not p.numbers:
        said.append("There is no number to set ours beside.")
    if p.measures == "time":
        said.append("Ours is from runs side by side on one machine, so noisy.")
    if not _ours(a, p):
        return [*said, "Ours: no run here is of that kind."]
    shown = {label for label, _ in _ours(a, p)}
    for label, others in [row for row in _settings(a, p) if row[0] in shown]:
        said.append(f"Setting of \u201c{label}\u201d: {', '.join(_setting(a, others))}.")
        reasons = differences(a, others, p)
        if reasons:
            said.append(f"Not comparable: {'; '.join(reasons)}.")
        else:
            said.append("Comparable: data, network, epochs and batch are the published ones.")
    return said


def differences(a: Analysis, others: tuple, p: Published) -> list[str]:
    """What of our runs is not as published."""
    runs = [r for s in a.series if s.others == others for g in s.groups.values() for r in g.results]
    settings = [r.experiment for r in runs]
    found = []
    if not all(_is_data(e.data, p.data) for e in settings):
        found.append(f"the data is {_listed(e.data for e in settings)}")
    if not all(_is_model(e.model, p.model) for e in settings):
        found.append(f"the network is {_listed(e.model for e in settings)}")
    if p.epochs and any(e.epochs != p.epochs for e in settings):
        found.append(f"{_listed(e.epochs for e in settings)} epochs instead of {p.epochs}")
    if p.batch_size and any(e.batch_size != p.batch_size for e in settings):
        sizes = _listed(e.batch_size for e in settings)
        found.append(f"batches of {sizes} instead of {p.batch_size}")
    if any(e.num_train is not None for e in settings):
        found.append(f"only {_listed(e.num_train for e in settings)} training images")
    if any(e.image_size not in (None, p.image_size) for e in settings):
        found.append(f"images of {_listed(e.image_size for e in settings)} pixels")
    if p.source != "gn" and p.columns[0].startswith("test"):
        found.append(_HELD_OUT)
    return found


_HELD_OUT = "ours is the error on validation images, not on the test set"


def _is_data(address: str, word: str) -> bool:
    """Whether an address has the word, by itself.

    >>> [_is_data(a, "imagenet") for a in ("folder:/data/imagenet", "tiny_imagenet:data/x")]
    [True, False]
    """
    return bool(word and re.search(rf"(?<![\w-]){re.escape(word)}(?!\w)", address))


def _is_model(address: str, words: str) -> bool:
    """Whether an address has one of the words, or is the one that is an address itself.

    >>> [_is_model(m, "vgg16 vgg:16") for m in ("torchvision:vgg16", "vgg:16", "vgg:16:8")]
    [True, True, False]
    """
    return any(w == address if ":" in w else w in address for w in words.split())


def _ours(a: Analysis, p: Published) -> list[tuple[str, dict[Number, str]]]:
    """A column for each setting of ours: its heading and the cells that there are."""
    found = []
    for label, others in _settings(a, p):
        cells = {n: text for n in p.numbers if (text := _cell(a, others, p, n))}
        if _compares(p, list(cells)):
            found.append((label, cells))
    return found[:_MAX_COLUMNS]


def _compares(p: Published, numbers: Sequence[Number]) -> bool:
    """Whether there is something to compare: several norms, and several sizes if it is on those."""
    if p.measures == "time":
        return bool(numbers)
    sizes = min(2, len({n.at for n in p.numbers if n.norm}))
    return len({n.norm for n in numbers}) > 1 and len({n.at for n in numbers}) >= sizes


def _settings(a: Analysis, p: Published) -> list[tuple[str, tuple]]:
    """What else was varied, and how its column is called."""
    names = {s.others: s.label.partition(" · ")[2] for s in a.series}
    found = []
    for others, name in names.items():
        is_small = set(differences(a, others, p)) - {_HELD_OUT}
        kind = "ours, small" if is_small else "ours"
        found.append((f"{kind}: {name}" if len(names) > 1 else kind, others))
    return found


def _cell(a: Analysis, others: tuple, p: Published, number: Number) -> str:
    if number.norm is None:
        return ""
    series = _matching(a, others, number.norm)
    if series is None:
        return ""
    if p.measures == "time":
        return _slower(a, series)
    group = _at(a, p, series, number.at)
    return spread(group) if group is not None and group.errors else ""


def _at(a: Analysis, p: Published, series: Series, at: int | None) -> Group | None:
    """Our group at the published size; in a table at one size, the only size of ours will do."""
    if at in a.xs or (at is None and series.flat):
        return series.at(at)
    one_size = len({n.at for n in p.numbers if n.norm}) == 1
    return series.at(a.xs[0]) if one_size and len(a.xs) == 1 else None


def _matching(a: Analysis, others: tuple, wanted: str) -> Series | None:
    """Our series of a norm, under any of its names; the ends of groups are layer and instance."""
    same = [s for s in a.series if s.others == others]
    exact = [s for s in same if spelled_out(s.norm) == spelled_out(wanted)]
    plain = [s for s in same if wanted == family(wanted) == family(s.norm)]
    return next(iter([*exact, *plain]), None)


def _slower(a: Analysis, series: Series) -> str:
    reference = a.reference(series)
    if reference is None or not a.xs:
        return ""
    x = a.xs[-1]
    ours, theirs = median(series.at(x), "seconds"), median(reference.at(x), "seconds")
    return "" if not ours or not theirs else f"{100 * (ours / theirs - 1):.0f}"


def _values(p: Published, number: Number) -> list[str]:
    cells = [f"{v:.1f}{p.mark(number)}" if v % 1 else f"{v:.0f}" for v in number.values]
    if p.measures == "error":
        cells = [f"{v:.1f}{p.mark(number)}" for v in number.values]
    return [*cells, *["—"] * (len(p.columns) - len(cells))]


def _setting(a: Analysis, others: tuple) -> list[str]:
    runs = [r for s in a.series if s.others == others for g in s.groups.values() for r in g.results]
    shown = ("data", "model", "image_size", "epochs", "batch_size", "learning_rate")
    names = [f.name for f in dataclasses.fields(runs[0].experiment) if f.name in shown]
    found = []
    for name in names:
        values = {getattr(r.experiment, name) for r in runs}
        if values != {None}:
            found.append(f"{name.replace('_', ' ')} {_listed(values)}")
    seeds = {r.experiment.seed for r in runs if r.error is not None}
    return [*found, f"{len(seeds)} seeds" if len(seeds) != 1 else "1 seed"]


def _listed(values: Iterable[Any]) -> str:
    """The different values, in order."""
    found = {v for v in values if v is not None}
    return ", ".join(
        f"{v:g}" if isinstance(v, float) else str(v)
        for v in sorted(found, key=lambda v: (isinstance(v, str), v))
    )
