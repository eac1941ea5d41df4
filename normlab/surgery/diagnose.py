"""What a network's norms suffer from: measured at every norm, named, with a fix."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normlab.surgery.batches import (
    Forward,
    bare,
    batches,
    check_loader,
    in_evaluation,
    labels_of,
    run,
)
from normlab.surgery.calibrate import calibrate
from normlab.surgery.facts import Facts, norms_of, watching
from normlab.surgery.findings import Finding, Score, find
from normlab.surgery.freeze import freeze, is_frozen, unfreeze
from normlab.surgery.layers import Site, SurgeryError, show_leaves
from normlab.surgery.population import is_tracked
from normlab.surgery.tables import table

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Diagnosis:
    """What was measured and found; `print` shows it.

    Args:
        findings: faults, the gravest first; none in a healthy network.
        norms: what was measured at each norm, in the order of the model.
        scores: by the statistics used: "running", "population", "batch", "frozen".
    """

    findings: tuple[Finding, ...]
    norms: tuple[Facts, ...]
    scores: dict[str, Score]

    def __str__(self) -> str:
        parts = [_table(self.norms), _table_of_scores(self.scores)]
        found = "\n".join(map(str, self.findings)) or "nothing is wrong with the norms"
        return "\n\n".join(part for part in (*parts, found) if part)


def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss | None = None,
    max_batches: int | None = None,
    passes: str = "exact",
    device: torch.device | str | None = None,
    forward: Forward | None = None,
) -> Diagnosis:
    """Compare running with population statistics at every norm, and name what is wrong.

    A copy is calibrated on the data; the model stays as it is, with its modes and the state of
    random numbers. Judged are the data at hand: give those of training to learn of its batches,
    those of use to learn whether statistics suit them.

    Args:
        loader: as in `normlab.calibrate`; batches (input, labels) are judged by their accuracy.
        loss: mean over a batch, `loss(output, batch)`; reported under each kind of statistics.
        max_batches: read at most so many; None is all.
        passes: see `normlab.calibrate`; the rest takes four passes over the data.
        device: where batches go; None is where the first norm is.
        forward: what to do with a batch, `forward(model, batch)`; None is `model(input)`.

    Scores are taken under running statistics; under the population's; under those of each batch;
    and under frozen ones: the running, while dropout and other layers without parts train.

    Raises:
        SurgeryError: no norm, no data, or data that make the network's values not finite.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> model[0].momentum = 0.0
    >>> print(diagnose(model, [torch.randn(32, 1) + 5 for _ in range(8)]).findings[0].kind)
    stale averages
    """
    network = bare(model, "diagnose")
    found = norms_of(network)
    if not found:
        raise SurgeryError(f"0 norms to diagnose; it has {show_leaves(network)}")
    check_loader(loader, max_batches, "a diagnosis reads the data several times")
    if device is None:
        device = next((t.device for t in (*network.parameters(), *network.buffers())), None)
    pass_of = _Pass(loader, loss, max_batches, device, forward)
    scores: dict[str, Score] = {}
    with _untouched_random():
        free = copy.deepcopy(network)
        if any(is_frozen(site.layer) for site in found):
            unfreeze(free, "stats")
        calibrated = copy.deepcopy(free)
        if any(is_tracked(site.layer) for site in found):
            calibrate(
                calibrated, loader, passes=passes, max_batches=max_batches, device=device,
                forward=forward,
            )  # fmt: skip
        with in_evaluation(calibrated), watching(calibrated, network) as facts:
            population = pass_of(calibrated)
        if not population.samples and not any(f.batches for f in facts):
            raise SurgeryError("the loader has no batches, so there is nothing to diagnose with")
        with in_evaluation(free):
            scores["running"] = pass_of(free)
        if any(f.tracked for f in facts):
            scores["population"] = population
            if _takes_batches(facts):
                scores["batch"] = _batch_score(pass_of, free)
            scores["frozen"] = _frozen_score(pass_of, free)
    judged = {name: s for name, s in scores.items() if (s.top1, s.loss) != (None, None)}
    return Diagnosis(tuple(find(facts, judged)), tuple(facts), judged)


class _Pass:
    """One reading of the data: every batch through a network, judged."""

    def __init__(self, loader: Iterable[Any], loss: Loss | None, *how: Any) -> None:
        self.loader, self.loss = loader, loss
        self.max_batches, self.device, self.forward = how

    def __call__(self, network: nn.Module) -> Score:
        right = judged = samples = 0
        total = 0.0
        torch.manual_seed(0)  # the same order and augmentation each time
        with torch.no_grad():
            for batch in batches(self.loader, self.max_batches, self.device):
                output = run(network, batch, self.forward)
                labels, logits = labels_of(batch), _logits(output)
                size = 1 if labels is None else len(labels)
                samples += size
                if self.loss is not None:
                    total += float(self.loss(output, batch)) * size
                if labels is not None and logits is not None and len(labels) == len(logits):
                    right += int((logits.argmax(1) == labels).sum())
                    judged += size
        top1 = 100 * right / judged if judged else None
        return Score(top1, None if self.loss is None else total / max(samples, 1), samples)


def _logits(output: Any) -> Tensor | None:
    """(N, classes) out of a tensor, a tuple that starts with it, or an output with `logits`."""
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple | list) and output else output
    return output if isinstance(output, Tensor) and output.dim() == 2 else None


def _tracked(network: nn.Module) -> list[Site]:
    return [site for site in norms_of(network) if is_tracked(site.layer)]


def _batch_score(pass_of: _Pass, network: nn.Module) -> Score:
    twin = copy.deepcopy(network)
    with in_evaluation(twin, but=[site.layer for site in _tracked(twin)]):
        return pass_of(twin)


def _frozen_score(pass_of: _Pass, network: nn.Module) -> Score:
    """What training sees once norms are frozen: dropout and the like, which have no parts, act."""
    twin = copy.deepcopy(network)
    freeze(twin, "stats")
    with in_evaluation(twin, but=[m for m in twin.modules() if not list(m.children())]):
        return pass_of(twin)


def _takes_batches(facts: list[Facts]) -> bool:
    """Whether every batch can be normalized by itself."""
    return all(
        f.fewest != 1 and not (isinstance(f.layer, nn.SyncBatchNorm) and not f.layer.weight.is_cuda)
        for f in facts
        if f.tracked
    )


@contextmanager
def _untouched_random() -> Iterator[None]:
    """All generators of random numbers as they were, afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


_COLUMNS = ("norm", "layer", "values", "mean off", "var ratio", "eval gap", "train/eval", "noise",
            "dead")  # fmt: skip
_LEGEND = (
    "values per statistic and batch; running against population: means in standard deviations, "
    "ratio of variances,\nchange of the output; change of the output between training and "
    "evaluation; of it, noise of the batches; dead channels"
)


def _table(norms: Iterable[Facts]) -> str:
    rows = [_row(facts) for facts in norms]
    return "\n".join([*table(_COLUMNS, rows), _LEGEND])


def _row(facts: Facts) -> tuple[str, ...]:
    name, kind = facts.name or "(model)", type(facts.layer).__name__
    if facts.order < 0:
        return name, kind, "did not run", *[""] * 6
    numbers = [""] * 5
    if facts.has_running:
        shift, ratio = facts.shift().pow(2).mean().sqrt(), facts.log_ratio().mean().exp()
        numbers[:3] = f"{shift:.3f}", f"{ratio:.3g}", f"{facts.gap():.3f}"
        if facts.pooled:
            numbers[3] = f"{(facts.train_eval / facts.samples) ** 0.5:.3f}"
    elif facts.tracked:
        numbers[:3] = ["not finite"] * 3
    if facts.pooled:
        numbers[4] = f"{(facts.noise / facts.samples) ** 0.5:.3f}"
    dead = f"{int(facts.dead.sum())}/{facts.dead.numel()}"
    return name, kind, str(facts.values), *numbers, dead


def _table_of_scores(scores: dict[str, Score]) -> str:
    if not scores:
        return ""
    rows = [
        (
            name,
            "" if s.top1 is None else f"{s.top1:.1f} %",
            "" if s.loss is None else f"{s.loss:.4g}",
        )
        for name, s in scores.items()
    ]
    return "\n".join(table(("statistics", "top-1", "loss"), rows))
