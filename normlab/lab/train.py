"""Train one run: one readable loop that stops and resumes anywhere without changing its result."""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGTERM
from typing import Any

import torch

from normlab.lab import (
    data,
    evaluate,
    memory,
    mixing,
    population,
    probes,
    processes,
    saving,
    shift,
    start,
)
from normlab.lab.compute import Compute
from normlab.lab.data import loader
from normlab.lab.data.batches import Batch, Batches, fetch
from normlab.lab.data.dataset import DataError, Dataset
from normlab.lab.interrupt import Interrupt
from normlab.lab.optimizer import learning_rate
from normlab.lab.processes import Group
from normlab.lab.runs import Run, RunError
from normlab.lab.saving import Position
from normlab.lab.tasks.confusion import confusion
from normlab.lab.update import Sums, Update, share_of

CHECKPOINT_SECONDS = 600  # between checkpoints inside long epochs


class Diverged(ArithmeticError):
    """A loss, gradient or statistic that is not finite; says where."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: after every step, and with the validation error after every epoch."""

    epoch: int  # 1 and up
    step: int
    num_steps: int
    loss: float  # mean of the epoch so far
    error: float  # percent of the training images of the epoch so far
    validation_error: float | None  # percent, of the last epoch that ended


Report = Callable[[Progress], None]


def train(run: Run, *, compute: Compute = Compute(), report: Report | None = None) -> str:  # noqa: B008
    """Train a run to its end, from its last checkpoint if there is one.

    A finished run is left alone. Ctrl-C or SIGTERM completes the step at hand and writes a
    checkpoint. On the CPU, with the same versions, processes and threads, a run that was
    interrupted or killed any number of times ends with the same bits as one that was not.

    Under torchrun every process calls this; only the first one, rank 0, writes.

    Args:
        compute: where and by how many processes; starts them where torchrun has not.
        report: called after every step.

    Returns:
        The state the run is left in: finished, interrupted or diverged.

    Raises:
        Any error of the run; it is recorded in status.json, too.
    """
    if processes.follows():
        with Interrupt() as interrupt, processes.together(compute, _follow) as group:
            try:
                return _work(run, compute, group, interrupt, report)
            except Diverged:  # the first process says so
                return "diverged"
    if run.status["state"] == "finished" and not processes.under_torchrun():
        return "finished"
    with run.lock(), Interrupt() as interrupt:
        try:
            with processes.together(compute, _follow, run, compute) as group:
                return _work(run, compute, group, interrupt, report)
        except Diverged as error:
            run.set_status("diverged", cause=str(error))
            return "diverged"
        except Exception as error:
            with contextlib.suppress(RunError):  # of a disk that is full; `error` says so
                run.set_status("failed", cause=f"{type(error).__name__}: {error}")
            raise
        except KeyboardInterrupt:
            run.set_status("interrupted", signal=interrupt.signal)
            raise


def _follow(run: Run, compute: Compute, group: Group) -> None:
    """What every process but the first does."""
    with Interrupt() as interrupt:
        _work(run, compute, group, interrupt, None)


def _work(
    run: Run, compute: Compute, group: Group, interrupt: Interrupt, report: Report | None
) -> str:
    if group.gather(run.status["state"] if group.is_first else "")[0] == "finished":
        return "finished"
    if group.is_first:
        run.set_status("running")
        run.record_environment(str(group.device))
    session = _Session(run, compute, group)
    state = session.run_epochs(interrupt, report or (lambda progress: None))
    at = session.at
    if group.is_first:
        signal = {"signal": interrupt.signal or SIGTERM} if state == "interrupted" else {}
        run.set_status(state, epoch=at.epoch, step=at.step, best_error=at.best_error, **signal)
    return state


class _Session:
    """A run in memory."""

    def __init__(self, run: Run, compute: Compute, group: Group) -> None:
        e = run.experiment
        self.run, self.experiment, self.compute, self.group = run, e, compute, group
        self.device = group.device
        self.train_set, self.validation_set = load_data(
            e.data, e.image_size, e.validation, e.num_train, e.num_validation, start.view_of(e),
            compute.skip_bad > 0,
        )  # fmt: skip
        self.batches = Batches(
            self.train_set, e.batch_size, seed=e.seed, augment=e.augment, order=e.order,
            part=share_of(e, group), skip_bad=compute.skip_bad > 0,
        )  # fmt: skip
        self.num_steps = e.epochs * len(self.batches)
        torch.manual_seed(e.seed)
        model, self.input = start.network(e, self.train_set)
        self.update = Update(e, model, group, compute, self.train_set.domains)
        self.probes = probes.Recorder(self.update.model, e.probe if group.is_first else None)
        self.computed = saving.conditions(group, compute, self.train_set, self.validation_set)
        self.at = Position()
        resumed = saving.resume(
            run.path / "checkpoints" / "last", self.update, self.computed, compute.allow_change
        )
        if resumed is not None:
            self.at, num_events = resumed
        if group.is_first:
            run.truncate(0 if resumed is None else num_events)
        events = run.events() if group.is_first else []  # while others may still see those cut off
        said = [event["image"] for event in events if event["event"] == "skipped"]
        self.skipped = set(group.gather(said)[0])
        self._skip(self.validation_set.skipped)
        if resumed is None:
            self._log_start()

    def run_epochs(self, interrupt: Interrupt, report: Report) -> str:
        e, at = self.experiment, self.at
        workers = loader.num_workers(self.train_set, self.compute.workers, self.group.size)
        stream = loader.stream(
            self.batches, self.batches.places((at.epoch, at.batch), e.epochs), workers=workers,
            timeout=self.compute.timeout, pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        with contextlib.closing(stream) as rest:
            while at.epoch < e.epochs and not self._out_of_patience():
                if not self._run_epoch(rest, interrupt, report):
                    return "interrupted"
        self._log_end()
        return "finished"

    def _run_epoch(self, rest: Any, interrupt: Interrupt, report: Report) -> bool:
        """Train from the position at hand to the end of its epoch; False if interrupted before."""
        at = self.at
        self.update.model.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = saved = time.perf_counter()
        earlier = at.seconds
        while at.batch < len(self.batches):
            batch = next(rest)
            self._step(batch)
            at.seconds = earlier + time.perf_counter() - started
            report(self._progress())
            is_due = time.perf_counter() - saved > CHECKPOINT_SECONDS
            stops, saves = self.group.any(interrupt.signal is not None, is_due)
            if stops or saves:
                self._save()
                saved = time.perf_counter()
            if stops:
                return False
        self._end_epoch()
        return True

    def _step(self, batch: Batch) -> None:
        at, update = self.at, self.update
        update.prepare(at.step, self.num_steps)
        mix = mixing.draw(self.experiment, at.epoch, at.batch)
        probed = self.probes.due(at.step, len(self.batches))
        with self.probes.watching(at.step, len(self.batches)):
            sums = update.gradients(batch, self.input, mix=mix, probed=probed)
        self._add_up(sums, batch)
        self._log_probes()
        if not math.isfinite(at.loss):
            raise self._diverged("loss", batch)
        if not update.apply(at.step):
            raise self._diverged("gradient", batch)
        at.batch += 1
        at.step += 1

    def _add_up(self, sums: Sums, batch: Batch) -> None:
        """Count the images of all processes, and those that none could read."""
        new = [said for said in batch.skipped if said not in self.skipped]
        loss, wrong, num_skipped = self.group.sum([*sums, len(new)])
        self.at.loss += loss
        self.at.wrong += int(wrong)
        if num_skipped:
            self._skip(said for part in self.group.gather(new) for said in part)

    def _skip(self, sentences: Any) -> None:
        """Record unreadable images, which others have replaced, as long as there are few."""
        for said in sentences:
            if said in self.skipped:
                continue
            self.skipped.add(said)
            if self.group.is_first:
                self.run.log("skipped", image=said)
            if len(self.skipped) > self.compute.skip_bad:
                raise DataError(
                    f"{len(self.skipped)} unreadable images, where {self.compute.skip_bad} may be "
                    f"passed over; the last: {said}"
                )

    def _log_probes(self) -> None:
        at = self.at
        taken = self.probes.take()
        samples = at.step * self.experiment.batch_size
        place = {"epoch": at.epoch + 1, "step": at.step, "samples": samples}
        if taken:
            self.run.log_all("probe", [{**place, **found} for found in taken])

    def _diverged(self, quantity: str, batch: Batch) -> Diverged:
        at = self.at
        return Diverged(
            f"the {quantity} is not finite at step {at.step} (epoch {at.epoch + 1}) on training "
            f"images {', '.join(map(str, batch.indices.tolist()[:64]))}; "
            "lower the learning rate or look at these images"
        )

    def _end_epoch(self) -> None:
        at, e = self.at, self.experiment
        self._check_buffers()
        if self.device.type == "cuda":
            at.bytes_peak = max(at.bytes_peak, torch.cuda.max_memory_allocated(self.device))
        started = time.perf_counter()
        loss, error = self._validate()
        seen = len(self.batches) * e.batch_size
        at.epoch += 1
        self._log(
            "epoch",
            epoch=at.epoch,
            step=at.step,
            samples=at.epoch * seen,
            train_loss=at.loss / seen,
            train_error=100 * at.wrong / seen,
            validation_loss=loss,
            validation_error=error,
            learning_rate=learning_rate(e, at.step - 1, self.num_steps),
            seconds_train=at.seconds,
            seconds_validation=time.perf_counter() - started,
        )
        at.batch, at.loss, at.wrong, at.seconds = 0, 0.0, 0, 0.0
        at.validation_error = error
        if error < at.best_error:
            at.best_error, at.best_epoch = error, at.epoch
            self._save("best", keep=1)
        self._save()

    def _validate(self) -> tuple[float, float]:
        """Loss and error over the whole validation set, which the processes share."""
        return evaluate.measure_together(
            self.update.judged, self.validation_set, self.input, self.group, self.compute
        )

    def _check_buffers(self) -> None:
        for name, buffer in self.update.model.named_buffers():
            if buffer.is_floating_point() and not buffer.isfinite().all():
                raise Diverged(
                    f"{name} is not finite after epoch {self.at.epoch + 1}; lower the learning rate"
                )

    def _out_of_patience(self) -> bool:
        patience = self.experiment.patience
        return patience is not None and self.at.epoch - self.at.best_epoch >= patience

    def _save(self, which: str = "last", *, keep: int = 2) -> None:
        self._check_buffers()
        if self.group.is_first:
            saving.save(
                self.run.path / "checkpoints" / which, self.update, self.at,
                num_events=self.run.num_events, input=self.input, computed=self.computed,
                complete=which == "last", keep=keep,
            )  # fmt: skip

    def _log(self, event: str, **fields: Any) -> None:
        if self.group.is_first:
            self.run.log(event, **fields)

    def _log_start(self) -> None:
        before = self._scores_before()
        if not self.group.is_first:
            return
        e, model = self.experiment, self.update.alone(self.update.model)
        # as many images as this process computes together: all may not fit on its device
        num = len(torch.arange(e.batch_size)[share_of(e, self.group)]) // e.accumulate
        batch = fetch(self.train_set, torch.arange(max(1, num)), skip_bad=True)
        x = self.input.prepare(batch.images, self.device)
        labels = batch.labels.to(self.device)
        with self.update.autocast():
            saved = memory.bytes_saved(model, x, labels)
            peak = memory.bytes_peak(model, x, labels) if self.device.type == "cpu" else None
        self.run.log(
            "start",
            num_parameters=sum(p.numel() for p in model.parameters()),
            bytes_saved=saved,
            **({} if peak is None else {"bytes_peak": peak}),
            num_measured=len(labels),
            num_train=len(self.train_set),
            num_validation=len(self.validation_set),
            **before,
        )

    def _scores_before(self) -> dict[str, float]:
        """What a network that has learned already scores before this training."""
        if self.experiment.source is None and self.experiment.weights is None:
            return {}
        loss, error = self._validate()
        return {"validation_loss": loss, "validation_error": error}

    def _log_end(self) -> None:
        """Judge the network as it is left."""
        e, at, model = self.experiment, self.at, self.update.alone(self.update.judged)
        found = confusion(model, self.validation_set, self.input, self.device)
        self._log("confusion", **found)
        sets = (self.train_set, self.validation_set)
        together = e.batch_size // e.accumulate
        judged = population.errors(model, *sets, self.input, self.device, together)
        if judged:
            self._log("statistics", running=at.validation_error, **judged)
        if e.shift is not None:
            for row in shift.errors(model, *sets, self.input, self.device, e.shift):
                self._log("shift", **row)
        peak = {"bytes_peak": at.bytes_peak} if at.bytes_peak else {}
        reason = "finished" if at.epoch == e.epochs else "patience"
        self._log("end", reason=reason, **peak)

    def _progress(self) -> Progress:
        at = self.at
        seen = at.batch * self.experiment.batch_size
        return Progress(
            epoch=at.epoch + 1,
            step=at.step,
            num_steps=self.num_steps,
            loss=at.loss / seen,
            error=100 * at.wrong / seen,
            validation_error=at.validation_error,
        )


@functools.lru_cache(maxsize=1)
def load_data(
    address: str,
    image_size: int | None,
    validation: float,
    num_train: int | None,
    num_validation: int | None,
    view: str = "whole",
    skip_bad: bool = False,
) -> tuple[Dataset, Dataset]:
    """Training and validation set; the last pair is remembered for the next run of a sweep."""
    how: dict[str, Any] = {
        "image_size": image_size, "validation": validation, "view": view, "skip_bad": skip_bad
    }  # fmt: skip
    return (
        data.load(address, "train", limit=num_train, **how),
        data.load(address, "validation", limit=num_validation, **how),
    )
