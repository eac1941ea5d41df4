"""Runs that started from another run: what a network loses when its norms are converted.

Their error before the first step is that right after the conversion; needs no torch.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from normlab.lab.analysis import Analysis, Group, telling
from normlab.lab.differences import Difference, paired
from normlab.lab.experiment import Experiment
from normlab.lab.results import Result

_NETWORK = ("data", "model", "image_size", "num_train", "num_validation", "epochs", "learning_rate")
_SETTING = ("learning_rate_batch", "optimizer", "momentum", "weight_decay", "schedule", "augment")


@dataclass(frozen=True)
class Way:
    """One way of conversion.

    Args:
        source_norm: of the run it started from; None where that run is not at hand.
        after: runs over seeds, by the batch size they were trained on with.
    """

    label: str
    norm: str
    source_norm: str | None
    after: Mapping[int, Group]

    @property
    def converted(self) -> bool:
        return self.norm != self.source_norm or " · " in self.label

    @property
    def before(self) -> dict[int, float]:
        """Error right after conversion by seed, before any training on."""
        found: dict[int, list[float]] = {}
        for group in self.after.values():
            for r in group.results:
                if r.error_before is not None:
                    found.setdefault(r.experiment.seed, []).append(r.error_before)
        return {seed: statistics.fmean(errors) for seed, errors in found.items()}


@dataclass(frozen=True)
class Network:
    """A source and all the ways its norms were converted.

    Args:
        source: error of the runs that were started from, by seed; empty if they are not at hand.
    """

    label: str
    source: Mapping[int, float]
    ways: tuple[Way, ...]

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted({x for way in self.ways for x in way.after}))

    @property
    def control(self) -> Way | None:
        """The source's own norm, trained on."""
        return next((way for way in self.ways if not way.converted), None)

    def loss(self, way: Way) -> Difference | None:
        """Error right after conversion minus that before it, seed by seed.

        The source's own norm started from the same weights; the source's result is a median over
        epochs, and stands in where that was not run.
        """
        control = self.control.before if self.control else {}
        return paired(way.before, control or self.source)

    def against_control(self, way: Way, x: int) -> Difference | None:
        """Error after training on minus that of the source's own norm, seed by seed."""
        if self.control is None or way is self.control:
            return None
        theirs = self.control.after.get(x, Group(()))
        return paired(way.after.get(x, Group(())).by_seed, theirs.by_seed)


def networks(a: Analysis) -> list[Network]:
    """The conversions among the runs, by what was converted; runs without a result stay listed."""
    runs = a.conversions
    settings = [r.experiment for r in runs]
    fields = telling(settings, (*_NETWORK, *_SETTING)) if runs else []
    there = {PurePath(r.path).name: r for r in a.results}
    found: dict[tuple, list[Result]] = {}
    for r in runs:
        found.setdefault(tuple(getattr(r.experiment, f) for f in fields), []).append(r)
    return [
        _network(_label(fields, values), results, there)
        for values, results in sorted(found.items(), key=lambda item: tuple(map(str, item[0])))
    ]


def _network(label: str, results: Sequence[Result], there: Mapping[str, Result]) -> Network:
    sources = {}
    ways: dict[tuple[str, str, str | None], dict[int, dict[int, Result]]] = {}
    # finished runs first, so that they win over another try of the same setting
    for r in sorted(results, key=lambda r: (r.error is None, r.name)):
        e = r.experiment
        source = there.get(PurePath(e.source or "").name)
        if source is not None and source.error is not None:
            sources[e.seed] = source.error
        norm = None if source is None else source.experiment.norm
        by_seed = ways.setdefault((way(e, norm), e.norm, norm), {}).setdefault(e.batch_size, {})
        by_seed.setdefault(e.seed, r)
    made = [
        Way(
            name,
            norm,
            source_norm,
            {x: Group(tuple(runs[s] for s in sorted(runs))) for x, runs in sorted(after.items())},
        )
        for (name, norm, source_norm), after in ways.items()
    ]
    return Network(label, sources, tuple(sorted(made, key=_rank)))


def way(e: Experiment, source_norm: str | None) -> str:
    """A way of conversion in words.

    >>> way(Experiment(source="x", keep="affine"), "batch")
    'group · affine'
    >>> way(Experiment(source="x", strength=1.0, final_strength=0.0), "batch")
    'group · strength 1 → 0'
    """
    if e.strength is not None:
        if e.final_strength is None or e.final_strength == e.strength:
            return f"{e.norm} · strength {e.strength:g}"
        return f"{e.norm} · strength {e.strength:g} → {e.final_strength:g}"
    if e.norm == source_norm:
        return e.norm
    return f"{e.norm} · {e.keep}"


def _rank(way: Way) -> tuple:
    """As it comes first, then from least kept to most, then the source's own norm."""
    kind = way.label.partition(" · ")[2]
    order = ("fresh", "affine", "function")
    return not way.converted, order.index(kind) if kind in order else len(order), way.label


def _label(fields: Sequence[str], values: Sequence) -> str:
    said = [
        str(v) if f in ("data", "model") else f"{f} {v}"
        for f, v in zip(fields, values, strict=True)
    ]
    return ", ".join(said)
