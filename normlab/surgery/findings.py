"""What is wrong with a network's norms, by what was measured at them; each with a one-line fix.

A threshold is an error by chance where there is one to compare with; else it lies between what
healthy and broken networks show in `benchmarks/results/diagnose.csv`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normlab.surgery.facts import Facts

ERRORS = 2.0  # errors by chance; in the table healthy networks reach 1.5, faults start at 2.3
GAP = 0.1  # standard deviations; in the table healthy networks reach 0.05, faults start at 0.14
HEALTHY_BATCH = 8  # samples; a running average over batches this large is taken as sound
FIT = (
    0.9  # share of a discrepancy that a cause must explain; it does 0.99 of its own, 0.7 of others
)
INITIAL = 0.05  # share of the initial 0 and 1 left in an average; 28 batches at momentum 0.1
SMALL = (0.3, 0.8)  # 1/batch size; 0.35 to 0.60 after training at 2, at most 0.16 at 4 or more
SORTED = 5.0  # normal deviates; 1 in 3 million by chance, so that hundreds of norms may be asked
FEW = 16  # values per statistic; the mean of so many strays by a quarter of a standard deviation
GAIN = 3.0  # standard errors between two accuracies, 1 in 700 by chance

NAN, STALE, SMALL_BATCH, BATCHES, SHIFTED, DEAD, FEW_VALUES, SCORES = (
    "not finite", "stale averages", "tiny training batch", "batches are not random",
    "other data", "dead channels", "few values", "accuracy gap",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Args:
        kind: which fault, in words that are the same wherever it is found.
        layers: the norms that show it, in the order they run; none if the whole network does.
        evidence: what was measured, with numbers.
        fix: one line, mostly a call of normlab's.
    """

    kind: str
    layers: tuple[str, ...]
    evidence: str
    fix: str

    def __str__(self) -> str:
        some = ", ".join(name or "the model" for name in self.layers[:3])
        more = f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else ""
        where = f" at {some}{more}" if self.layers else ""
        return f"{self.kind}{where}: {self.evidence}\n    fix: {self.fix}"


@dataclass(frozen=True)
class Score:
    """How well the network does under one kind of statistics.

    Args:
        top1: in percent, where batches have labels.
        loss: mean over samples, where one was given.
        samples: how many were judged.
    """

    top1: float | None
    loss: float | None
    samples: int


def find(facts: Iterable[Facts], scores: Mapping[str, Score]) -> list[Finding]:
    """Every fault there is evidence for, the gravest first."""
    ran = sorted((f for f in facts if f.order >= 0), key=lambda f: f.order)
    unsure = [f for f in ran if f.tracked and not f.has_running]
    wrong = [f for f in ran if f.has_running and f.gap() > max(GAP, ERRORS * chance(f))]
    found = [_not_finite(unsure)]
    ordered = [(f, z) for f in ran if (z := deviates(f)) > SORTED]
    # a tiny batch shows at the first norm; later ones were fed by norms in training
    first = next((f for f in ran if f.pooled), None)
    if first in wrong and not ordered and not unsure and _fits_small_batch(first):
        found.append(_small_batch(wrong))
    else:
        stale = [f for f in wrong if f.layer.momentum == 0 or initial_share(f)[1] >= FIT]
        rest = [f for f in wrong if f not in stale]
        found.append(_stale(stale))
        found.append(_batches(ordered, rest) if ordered else _shifted(rest))
    found += [_dead(ran), _few_values(ran)]
    found.append(_gap(scores, explained=any(found)))
    return [finding for finding in found if finding is not None]


def chance(facts: Facts) -> float:
    """The gap that sampling alone explains: of these data, and of a sound running average."""
    return math.hypot(
        facts.sampling_error(facts.samples), facts.sampling_error(_averaged(facts) * HEALTHY_BATCH)
    )


def deviates(facts: Facts) -> float:
    """How far batches differ more than random ones would, in standard normal deviates.

    The variance between means of batches, over that within, is F-distributed about 1; its cube root
    is nearly normal. All channels count as one, as they may move together.

    Source: Wilson and Hilferty 1931, https://doi.org/10.1073/pnas.17.12.684.
    """
    free, within = facts.batches - 1, facts.samples - facts.batches
    if not facts.pooled or free < 3 or within < facts.batches:
        return 0.0
    inside = (facts.between - facts.batch_between) / within
    ratio = (facts.batch_between / free)[inside > 0] / inside[inside > 0]
    if not len(ratio) or not ratio.isfinite().all():
        return 0.0
    spread = 2 / 9 / free
    return (float(ratio.mean()) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def small_batch(facts: Facts) -> tuple[float, float]:
    """1/B of training by the running variance, and the share of the discrepancy it explains.

    The variance within a batch of B samples lacks 1/B of what is between samples, so
    running_var / var = 1 - between_share / B.
    """
    share, lacking = facts.between_share(), 1 - facts.running_var / facts.var.clamp(min=1e-30)
    inverse = float((share * lacking).sum() / (share * share).sum().clamp(min=1e-30))
    return inverse, _explained(lacking, inverse * share)


def _averaged(facts: Facts) -> float:
    """Batches that weigh in a running average: (2 - momentum)/momentum, at most all."""
    seen = _tracked(facts) or math.inf
    momentum = facts.layer.momentum
    return min(seen, (2 - momentum) / momentum if momentum else seen, 1e9)


def _tracked(facts: Facts) -> int:
    counter = getattr(facts.layer, "num_batches_tracked", None)
    return int(counter) if isinstance(counter, Tensor) else 0


def initial_share(facts: Facts) -> tuple[float, float]:
    """Share w of the initial 0 and 1 in the averages, and how much of the gap that explains.

    running = (1 - w) population + w initial, in standard deviations and in variances.
    """
    away = torch.cat([facts.mean / facts.std, (facts.var - 1) / facts.std**2])
    actual = torch.cat([facts.shift(), (facts.running_var - facts.var) / facts.std**2])
    share = -float((away * actual).sum() / (away * away).sum().clamp(min=1e-30))
    return share, _explained(actual, -share * away) if share >= INITIAL else 0.0


def _explained(actual: Tensor, model: Tensor) -> float:
    return 1 - float(((actual - model) ** 2).sum() / (actual**2).sum().clamp(min=1e-30))


def _fits_small_batch(facts: Facts) -> bool:
    """Variances lack what a tiny batch lacks, and means stray no more than its averages do."""
    if facts.layer.momentum == 0:
        return False
    inverse, explained = small_batch(facts)
    low, high = SMALL
    strays = (facts.shift() ** 2).mean() / facts.between_share().mean().clamp(min=1e-30)
    allowed = 9 * inverse / _averaged(facts)  # three errors
    return low <= inverse <= high and explained >= FIT and float(strays) <= allowed


def _names(found: Iterable[Facts]) -> tuple[str, ...]:
    return tuple(f.name for f in found)


def _discrepancy(found: list[Facts]) -> str:
    worst = max(found, key=Facts.gap)
    shift = float(worst.shift().pow(2).mean().sqrt())
    return (
        f"running against population statistics at {worst.name or 'the model'}: means "
        f"{shift:.2f} standard deviations apart, variances {math.exp(worst.log_ratio().mean()):.2g}"
        f" times, output off by {worst.gap():.2f} ({chance(worst):.2f} by chance)"
    )


def _not_finite(found: list[Facts]) -> Finding | None:
    if not found:
        return None
    f = found[0]
    bad = int((~(f.running_mean + f.running_var).isfinite()).sum())
    return Finding(
        NAN, _names(found),
        f"running statistics of {bad} of {len(f.running_mean)} channels are NaN or infinite, while "
        "the data are not",
        "normlab.calibrate(model, loader)",
    )  # fmt: skip


def _stale(found: list[Facts]) -> Finding | None:
    if not found:
        return None
    worst = max(found, key=Facts.gap)
    share = min(max(initial_share(worst)[0], 0), 1)
    is_new = bool((worst.running_mean == 0).all() and (worst.running_var == 1).all())
    state = "never updated" if is_new else f"{share:.0%} of it still the initial 0 and 1"
    if not is_new and initial_share(worst)[1] < FIT:
        state = "of another state of the weights or other data"
    count = f"{_tracked(worst)} batches at momentum {worst.layer.momentum}"
    evidence = f"{state}, after {count}; {_discrepancy(found)}"
    return Finding(STALE, _names(found), evidence, "normlab.calibrate(model, loader)")


def _small_batch(found: list[Facts]) -> Finding:
    inverse, explained = small_batch(found[0])
    evidence = (
        f"running variances of {found[0].name or 'the model'} lack {inverse:.2f} of what is between"
        f" samples, as those of batches of {1 / inverse:.1f} would (explains {explained:.0%}); "
    )
    return Finding(
        SMALL_BATCH, _names(found), evidence + _discrepancy(found),
        'normlab.convert(model, "group"), then train on; or normlab.calibrate(model, loader)',
    )  # fmt: skip


def _batches(ordered: list[tuple[Facts, float]], rest: list[Facts]) -> Finding:
    worst, z = max(ordered, key=lambda pair: pair[1])
    evidence = (
        f"means of batches differ {z:.1f} deviates more than random samples would (worst at "
        f"{worst.name or 'the model'}), as in data sorted by class"
    )
    evidence += f"; {_discrepancy(rest)}" if rest else "; running statistics do not suffer from it"
    return Finding(
        BATCHES, _names(f for f, _ in ordered), evidence,
        "shuffle the data for training" + (", then normlab.calibrate(model, loader)" * bool(rest)),
    )  # fmt: skip


def _shifted(found: list[Facts]) -> Finding | None:
    if not found:
        return None
    return Finding(
        SHIFTED, _names(found),
        f"averages of other data than these, or of other weights; {_discrepancy(found)}",
        "normlab.calibrate(model, loader) with data like those to come",
    )  # fmt: skip


def _dead(ran: list[Facts]) -> Finding | None:
    found = [(f, int(f.dead.sum())) for f in ran if f.dead.dim() and f.dead.any()]
    if not found:
        return None
    worst, count = max(found, key=lambda pair: pair[1] / pair[0].dead.numel())
    weight: Any = getattr(worst.layer, "weight", None)
    few = "" if weight is None else f", median |weight| {_median_weight(worst, weight):.1e}"
    why = "constant or never above the ReLU" if worst.rectified else "constant"
    return Finding(
        DEAD, _names(f for f, _ in found),
        f"{count} of {worst.dead.numel()} channels of {worst.name or 'the model'} are {why}{few}; "
        f"{sum(n for _, n in found)} in all",
        f'normlab.convert(model, "batch", where="{worst.name}", keep="fresh"), then train on',
    )  # fmt: skip


def _median_weight(facts: Facts, weight: Tensor) -> float:
    return float(weight.detach().double().cpu().abs()[facts.dead].median())


def _few_values(ran: list[Facts]) -> Finding | None:
    found = [f for f in ran if f.values < FEW]
    if not found:
        return None
    worst = min(found, key=lambda f: f.values)
    fix = "larger batches in training, or " if worst.pooled else "larger inputs, or "
    return Finding(
        FEW_VALUES, _names(found),
        f"{worst.values} values per statistic at {worst.name or 'the model'} in the largest batch, "
        f"whose mean strays by {1 / math.sqrt(max(worst.values, 1)):.2f} standard deviations",
        fix + f'normlab.convert(model, "layer", where="{worst.name}")',
    )  # fmt: skip


def _gap(scores: Mapping[str, Score], explained: bool) -> Finding | None:
    """Other statistics would serve better, by more than chance."""
    running, names = scores.get("running"), ("population", "batch")
    if running is None or running.top1 is None:
        return None
    better = {n: s.top1 for n in names if (s := scores.get(n)) and s.top1 is not None}
    name = max(better, key=lambda n: better[n], default=None)
    if name is None:
        return None
    p, q, n = running.top1 / 100, better[name] / 100, max(running.samples, 1)
    error = math.sqrt((p * (1 - p) + q * (1 - q)) / n)
    if q - p <= GAIN * error:
        return None
    helps = "population" in better and better["population"] / 100 - p > GAIN * error
    why = "as found above" if explained else "by no single norm"
    return Finding(
        SCORES, (),
        f"top-1 {running.top1:.1f} % under running and {better[name]:.1f} % under {name} statistics"
        f" ({100 * error:.1f} standard error, {n} samples), {why}",
        "normlab.calibrate(model, loader)" if helps
        else 'normlab.convert(model, "group"), then train on',
    )  # fmt: skip
