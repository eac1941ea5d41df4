"""What probes recorded: one by one, and as medians over seeds.

Reads run folders through `Run` only, and needs neither torch nor numpy.
"""

import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab.lab.runs import Run

PERCENTILES = (1, 20, 80, 99)
_LARGEST = 1e300  # what is beyond, or NaN, is no number: differences would not be finite
NUMBERS = ("mean", "var", "dead", "gradient_norm", "noise", "gap")


@dataclass(frozen=True)
class Probe:
    """One layer at one step; None where a number does not apply, is missing or not finite.

    Args:
        epoch: 1 and up.
        step, samples: updates done, and images seen, before.
        place: "input" of a norm, "output" of another layer, or "features".
        percentiles: of the values, by percent.
        mean, var: of the values.
        dead: share of channels that are 0 everywhere, 0 to 1.
        gradient_norm: of the layer's parameters.
        noise: what means of the batch stray from the running means, in running standard deviations.
        gap: log(running variance / batch variance), root mean square over channels.
    """

    epoch: int
    step: int
    samples: int
    layer: str
    place: str
    percentiles: Mapping[int, float | None]
    mean: float | None = None
    var: float | None = None
    dead: float | None = None
    gradient_norm: float | None = None
    noise: float | None = None
    gap: float | None = None

    @property
    def fan(self) -> tuple[float, ...] | None:
        """The percentiles in order, if all are there."""
        values = [self.percentiles.get(p) for p in PERCENTILES]
        found = tuple(v for v in values if v is not None)
        return found if len(found) == len(values) else None


def probes(run: "Run") -> list[Probe]:
    """The probes of a run in their order; events that lack a layer or their place are left out.

    Raises:
        RunError: the file is missing or damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a half-written last line: whoever counts events says so
        events = run.events()
    found = (_probe(e) for e in events if e.get("event") == "probe")
    return [probe for probe in found if probe is not None]


def medians(seeds: Sequence[Sequence[Probe]]) -> list[Probe]:
    """One layer's probes, number by number the median over the seeds that have it.

    Args:
        seeds: for each seed its probes of one layer, at any steps.

    Returns:
        A probe at each step that some seed has, in order.
    """
    by_step: dict[int, list[Probe]] = {}
    for seed in seeds:
        for p in seed:
            by_step.setdefault(p.step, []).append(p)
    return [_median_probe(by_step[step]) for step in sorted(by_step)]


def _median_probe(found: list[Probe]) -> Probe:
    first = found[0]
    return Probe(
        first.epoch, first.step, first.samples, first.layer, first.place,
        {q: _median(p.percentiles.get(q) for p in found) for q in PERCENTILES},
        **{name: _median(getattr(p, name) for p in found) for name in NUMBERS},
    )  # fmt: skip


def _median(values: Iterable[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return statistics.median(there) if there else None


def _probe(event: Mapping[str, Any]) -> Probe | None:
    layer, place, percentiles = (event.get(k) for k in ("layer", "place", "percentiles"))
    epoch, step, samples = (_number(event.get(k)) for k in ("epoch", "step", "samples"))
    if not isinstance(layer, str) or not isinstance(place, str):
        return None
    if epoch is None or step is None or samples is None or min(epoch, step, samples) < 0:
        return None
    of = percentiles if isinstance(percentiles, dict) else {}
    return Probe(
        int(epoch), int(step), int(samples), layer, place,
        {q: _number(of.get(str(q))) for q in PERCENTILES},
        **{name: _number(event.get(name)) for name in NUMBERS},
    )  # fmt: skip


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= _LARGEST else None
