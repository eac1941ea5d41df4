"""What one run's folder says: its setting, how it ended, and its numbers.

Reads through `Run` only, and needs neither torch nor numpy.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normlab.lab.experiment import Experiment

if TYPE_CHECKING:
    from normlab.lab.runs import Run

LAST_EPOCHS = 3  # a run's result is the median over these; the paper takes 5 of 100
_MAX_CLASSES = 1000  # of a confusion matrix


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured; None where the number is missing or not finite."""

    samples: int
    train_error: float | None  # percent
    validation_error: float | None  # percent
    epoch: int = 0
    step: int | None = None
    seconds: float | None = None  # of training, validation not counted


@dataclass(frozen=True)
class Mistake:
    """A validation image the trained network was surest about, and wrong."""

    index: int
    true: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Confusion:
    """How the images of each class were classified after training.

    Args:
        counts: validation images by true and predicted class.
        mistakes: the surest first.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    mistakes: tuple[Mistake, ...] = ()


@dataclass(frozen=True)
class Judged:
    """Validation error after training, in percent, by whose statistics batch norms used."""

    running: float | None
    population: float | None
    batch: float | None


@dataclass(frozen=True)
class Shifted:
    """Validation error in percent under a shift, with statistics of so many images.

    Args:
        images: 0 is as trained.
    """

    shift: str
    images: int
    error: float | None


@dataclass(frozen=True)
class Result:
    """One run: its setting, how it ended and its numbers; None where there is none."""

    name: str
    path: str
    experiment: Experiment
    state: str
    cause: str
    epochs: tuple[Epoch, ...]
    error: float | None  # percent, validation; None unless the run finished
    train_error: float | None  # percent
    seconds: float | None  # per 1,000 training images
    bytes_saved: float | None  # for the backward pass, per image
    num_parameters: int | None
    num_train: int | None
    num_validation: int | None
    seconds_step: float | None = None  # per step of the optimizer
    bytes_peak: float | None = None  # a GPU's over all training, on the CPU one step's
    error_before: float | None = None  # percent, validation, of weights that the run started from
    confusion: Confusion | None = None
    judged: Judged | None = None
    shifted: tuple[Shifted, ...] = ()

    @property
    def bytes_saved_step(self) -> float | None:
        """For the backward pass of one step, or of each part of an accumulated one."""
        size = self.experiment.batch_size / self.experiment.accumulate
        return None if self.bytes_saved is None else self.bytes_saved * size

    @property
    def outcome(self) -> str:
        """`counted`, or why the run is in no mean."""
        if self.error is not None:
            return "counted"
        return "no result" if self.state == "finished" else self.state

    def error_of_last(self, count: int) -> float | None:
        """Median validation error of the last epochs; None unless it finished with so many."""
        if self.state != "finished" or len(self.epochs) < count:
            return None
        return _median([e.validation_error for e in self.epochs[-count:]])

    @property
    def lowest_error(self) -> float | None:
        """The validation error of the best epoch, which chance makes look better than it is."""
        if self.state != "finished":
            return None
        found = [e.validation_error for e in self.epochs if e.validation_error is not None]
        return min(found, default=None)


def read(run: "Run", last: int = LAST_EPOCHS) -> Result:
    """The numbers of one run's folder.

    Args:
        last: epochs at the end whose median is the run's result; all if it has fewer.
    """
    events, status, experiment = run.events(), run.status, run.experiment
    start = _event(events, "start")
    epochs = [e for e in events if e.get("event") == "epoch"]
    state = str(status.get("state", "unknown"))
    saved, peak = _number(start, "bytes_saved"), _number(_event(events, "end"), "bytes_peak")
    together = experiment.batch_size / experiment.accumulate
    num_measured = _number(start, "num_measured") or together
    peak = _number(start, "bytes_peak") if peak is None else peak
    return Result(
        name=experiment.name,
        path=str(run.path),
        experiment=experiment,
        state=state,
        cause=str(status.get("cause") or ""),
        epochs=tuple(_epoch(e, number) for number, e in enumerate(epochs, start=1)),
        error=_last(epochs, "validation_error", last) if state == "finished" else None,
        train_error=_last(epochs, "train_error", last),
        seconds=_seconds(epochs, "samples", 1000),
        bytes_saved=None if saved is None else saved / num_measured,
        num_parameters=_whole(start, "num_parameters"),
        num_train=_whole(start, "num_train"),
        num_validation=_whole(start, "num_validation"),
        seconds_step=_seconds(epochs, "step", 1),
        bytes_peak=peak,
        error_before=_number(start, "validation_error"),
        confusion=_confusion(_event(events, "confusion")),
        judged=_judged(_event(events, "statistics")),
        shifted=tuple(_shifted(events)),
    )


def _event(events: list[dict[str, Any]], name: str) -> Mapping[str, Any]:
    return next((e for e in events if e.get("event") == name), {})


def _epoch(event: Mapping[str, Any], number: int) -> Epoch:
    return Epoch(
        samples=_whole(event, "samples") or 0,
        train_error=_number(event, "train_error"),
        validation_error=_number(event, "validation_error"),
        epoch=_whole(event, "epoch") or number,
        step=_whole(event, "step"),
        seconds=_number(event, "seconds_train"),
    )


def _judged(event: Mapping[str, Any]) -> Judged | None:
    if not event:
        return None
    return Judged(*(_number(event, key) for key in ("running", "population", "batch")))


def _shifted(events: list[dict[str, Any]]) -> Iterator[Shifted]:
    for event in events:
        shift, images = event.get("shift"), event.get("images")
        if event.get("event") == "shift" and isinstance(shift, str) and _are_counts([images]):
            yield Shifted(shift, int(images or 0), _number(event, "error"))


def _confusion(event: Mapping[str, Any]) -> Confusion | None:
    """The matrix of a run; None where there is none, or none that is square and of counts."""
    classes, counts = event.get("classes"), event.get("counts")
    if not isinstance(classes, list) or not isinstance(counts, list):
        return None
    if len(counts) != len(classes) or not 0 < len(classes) <= _MAX_CLASSES:
        return None
    if not all(_are_counts(row) and len(row) == len(classes) for row in counts):
        return None
    found = event.get("mistakes")
    mistakes = [_mistake(m, len(classes)) for m in found] if isinstance(found, list) else []
    return Confusion(
        tuple(map(str, classes)),
        tuple(map(tuple, counts)),
        tuple(m for m in mistakes if m is not None),
    )


def _mistake(value: Any, num_classes: int) -> Mistake | None:
    if not isinstance(value, list) or len(value) != 4 or not _are_counts(value[:3]):
        return None
    index, true, predicted, probability = value
    if max(true, predicted) >= num_classes or not isinstance(probability, int | float):
        return None
    return Mistake(index, true, predicted, float(probability))


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**40 for v in values)


def _number(event: Mapping[str, Any], key: str) -> float | None:
    value = event.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _whole(event: Mapping[str, Any], key: str) -> int | None:
    value = _number(event, key)
    return None if value is None else int(value)


def _last(epochs: list[dict[str, Any]], key: str, count: int) -> float | None:
    return _median([_number(e, key) for e in epochs[-count:]])


def _median(values: Sequence[float | None]) -> float | None:
    """None if there is no value, or one of them is none."""
    numbers = [v for v in values if v is not None]
    return statistics.median(numbers) if numbers and len(numbers) == len(values) else None


def _seconds(epochs: list[dict[str, Any]], of: str, unit: int) -> float | None:
    """Median over the epochs of the seconds for `unit` samples or steps."""
    seen, found = 0.0, []
    for event in epochs:
        done, seconds = _number(event, of), _number(event, "seconds_train")
        if done is not None and done > seen:
            if seconds is not None and seconds > 0:
                found.append(unit * seconds / (done - seen))
            seen = done
    return statistics.median(found) if found else None
