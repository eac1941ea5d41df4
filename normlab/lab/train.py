"""Train one run: one readable loop that stops and resumes anywhere without changing its result."""

import copy
import functools
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from normlab import surgery
from normlab.lab import checkpoint, data, evaluate, optimizer, population, probes, start
from normlab.lab.data.batches import Batch, batches, num_batches
from normlab.lab.data.dataset import Dataset
from normlab.lab.interrupt import Interrupt
from normlab.lab.runs import Run
from normlab.lab.tasks import classification
from normlab.lab.tasks.confusion import confusion

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


@dataclass
class Position:
    """Where a run stands; with the tensors, everything a checkpoint has to hold."""

    epoch: int = 0  # epochs completed
    batch: int = 0  # batches done in the epoch at hand
    step: int = 0
    loss: float = 0.0  # sum over the images of the epoch at hand
    wrong: int = 0
    seconds: float = 0.0
    best_error: float = math.inf
    best_epoch: int = 0
    validation_error: float | None = None
    bytes_peak: int = 0  # of a GPU's memory, while training


def train(
    run: Run,
    *,
    device: torch.device | None = None,
    report: Callable[[Progress], None] | None = None,
) -> str:
    """Train a run to its end, from its last checkpoint if there is one.

    A finished run is left alone. Ctrl-C or SIGTERM completes the step at hand and writes a
    checkpoint. On the CPU, with the same versions and number of threads, a run that was interrupted
    or killed any number of times ends with the same bits as one that was not.

    Args:
        device: where to compute; None is the first GPU, or the CPU.
        report: called after every step.

    Returns:
        The state the run is left in: finished, interrupted or diverged.

    Raises:
        Any error of the run; it is recorded in status.json, too.
    """
    if run.status["state"] == "finished":
        return "finished"
    with run.lock(), Interrupt() as interrupt:
        run.set_status("running")
        device = device or default_device()
        run.record_environment(str(device))
        try:
            session = _Session(run, device)
            state = session.run_epochs(interrupt, report or (lambda progress: None))
        except Diverged as error:
            run.set_status("diverged", cause=str(error))
            return "diverged"
        except Exception as error:
            run.set_status("failed", cause=f"{type(error).__name__}: {error}")
            raise
        except KeyboardInterrupt:
            run.set_status("interrupted", signal=interrupt.signal)
            raise
        position = session.at
        run.set_status(
            state, epoch=position.epoch, step=position.step, best_error=position.best_error,
            **({"signal": interrupt.signal} if state == "interrupted" else {}),
        )  # fmt: skip
        return state


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Session:
    """A run in memory."""

    def __init__(self, run: Run, device: torch.device) -> None:
        e = run.experiment
        self.run, self.experiment, self.device = run, e, device
        self.train_set, self.validation_set = load_data(
            e.data, e.image_size, e.validation, e.num_train, e.num_validation
        )
        self.num_batches = num_batches(len(self.train_set), e.batch_size)
        torch.manual_seed(e.seed)
        model, self.input = start.network(e, self.train_set)
        self.model = model.to(device)
        self.probes = probes.Recorder(self.model, e.probe)
        self.at = Position()
        self.optimizer = optimizer.build(e, self.model)
        if not self._resume():
            run.truncate(0)
            self._log_start()

    def run_epochs(self, interrupt: Interrupt, report: Callable[[Progress], None]) -> str:
        e, at = self.experiment, self.at
        while at.epoch < e.epochs and not self._out_of_patience():
            if not self._run_epoch(interrupt, report):
                return "interrupted"
        reason = "finished" if at.epoch == e.epochs else "patience"
        found = confusion(self.model, self.validation_set, self.input, self.device)
        self.run.log("confusion", **found)
        together = e.batch_size // e.accumulate
        judged = population.errors(
            self.model, self.train_set, self.validation_set, self.input, self.device, together
        )
        if judged:
            self.run.log("statistics", running=at.validation_error, **judged)
        peak = {"bytes_peak": at.bytes_peak} if at.bytes_peak else {}
        self.run.log("end", reason=reason, **peak)
        return "finished"

    def _run_epoch(self, interrupt: Interrupt, report: Callable[[Progress], None]) -> bool:
        """Train from the position at hand to the end of its epoch; False if interrupted before."""
        e, at = self.experiment, self.at
        self.model.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        started = saved = time.perf_counter()
        earlier = at.seconds
        rest = batches(
            self.train_set, e.batch_size,
            seed=e.seed, epoch=at.epoch, augment=e.augment, start=at.batch,
        )  # fmt: skip
        for batch in rest:
            self._step(batch)
            at.seconds = earlier + time.perf_counter() - started
            report(self._progress())
            if interrupt.signal is not None:
                self._save()
                return False
            if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.perf_counter()
        self._end_epoch()
        return True

    def _step(self, batch: Batch) -> None:
        e, at = self.experiment, self.at
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(at.step)
        strength = start.strength(e, at.step / (e.epochs * self.num_batches))
        if strength is not None:
            surgery.set_strength(self.model, strength)
        self.optimizer.zero_grad()
        with self.probes.watching(at.step, self.num_batches):
            for images, labels in zip(
                batch.images.chunk(e.accumulate), batch.labels.chunk(e.accumulate)
            ):
                labels = labels.to(self.device)
                logits = self.model(self.input.prepare(images, self.device))
                loss = classification.loss(logits, labels)
                (loss / e.accumulate).backward()
                at.loss += loss.item() * len(labels)
                at.wrong += classification.num_wrong(logits.detach(), labels)
        self._log_probes()
        self._check(batch)
        self.optimizer.step()
        at.batch += 1
        at.step += 1

    def _log_probes(self) -> None:
        at = self.at
        taken = self.probes.take()
        samples = at.step * self.experiment.batch_size
        place = {"epoch": at.epoch + 1, "step": at.step, "samples": samples}
        if taken:
            self.run.log_all("probe", [{**place, **found} for found in taken])

    def _learning_rate(self, step: int) -> float:
        e = self.experiment
        return optimizer.learning_rate(e, step, e.epochs * self.num_batches)

    def _check(self, batch: Batch) -> None:
        """Stop before a step that would spoil the weights."""
        at = self.at
        if not math.isfinite(at.loss):
            quantity = "loss"
        else:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            if torch.nn.utils.get_total_norm(gradients).isfinite():
                return
            quantity = "gradient"
        raise Diverged(
            f"the {quantity} is not finite at step {at.step} (epoch {at.epoch + 1}) on training "
            f"images {', '.join(map(str, batch.indices.tolist()[:64]))}; "
            "lower the learning rate or look at these images"
        )

    def _end_epoch(self) -> None:
        at = self.at
        self._check_buffers()
        if self.device.type == "cuda":
            at.bytes_peak = max(at.bytes_peak, torch.cuda.max_memory_allocated(self.device))
        started = time.perf_counter()
        loss, error = evaluate.measure(self.model, self.validation_set, self.input, self.device)
        seen = self.num_batches * self.experiment.batch_size
        at.epoch += 1
        self.run.log(
            "epoch",
            epoch=at.epoch,
            step=at.step,
            samples=at.epoch * seen,
            train_loss=at.loss / seen,
            train_error=100 * at.wrong / seen,
            validation_loss=loss,
            validation_error=error,
            learning_rate=self._learning_rate(at.step - 1),
            seconds_train=at.seconds,
            seconds_validation=time.perf_counter() - started,
        )
        at.batch, at.loss, at.wrong, at.seconds = 0, 0.0, 0, 0.0
        at.validation_error = error
        if error < at.best_error:
            at.best_error, at.best_epoch = error, at.epoch
            self._save("best", keep=1)
        self._save()

    def _check_buffers(self) -> None:
        for name, buffer in self.model.named_buffers():
            if buffer.is_floating_point() and not buffer.isfinite().all():
                raise Diverged(
                    f"{name} is not finite after epoch {self.at.epoch + 1}; lower the learning rate"
                )

    def _out_of_patience(self) -> bool:
        patience = self.experiment.patience
        return patience is not None and self.at.epoch - self.at.best_epoch >= patience

    def _save(self, which: str = "last", *, keep: int = 2) -> None:
        self._check_buffers()
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        if which == "last":
            tensors |= optimizer.state_tensors(self.optimizer)
            tensors["rng"] = torch.get_rng_state()
        state = {
            "position": {k: v for k, v in asdict(self.at).items() if v != math.inf},
            "num_events": self.run.num_events,
            "input": asdict(self.input),
            "computed": self._computed(),
        }
        checkpoint.save(
            self.run.path / "checkpoints" / which, self.at.step, tensors, state, keep=keep
        )

    def _resume(self) -> bool:
        """Go back to the last checkpoint; False if there is none."""
        folder = self.run.path / "checkpoints" / "last"
        if not folder.exists() or not any(folder.iterdir()):
            return False
        tensors, state, _ = checkpoint.load(folder)
        self.model.load_state_dict(_below("model.", tensors))
        optimizer.load_state_tensors(self.optimizer, tensors)
        torch.set_rng_state(tensors["rng"])
        self.at = Position(**state["position"])
        self.run.truncate(state["num_events"])
        changed = [
            f"{key} was {before}, is {self._computed()[key]}"
            for key, before in state["computed"].items()
            if before != self._computed()[key]
        ]
        if changed:
            warnings.warn(
                f"{self.run.path}: resumed under other conditions ({'; '.join(changed)}); "
                "the result will not be the same to the bit",
                stacklevel=2,
            )
        return True

    def _log_start(self) -> None:
        e = self.experiment
        first = next(batches(self.train_set, e.batch_size, seed=e.seed, epoch=0, augment="none"))
        size = e.batch_size // e.accumulate
        x = self.input.prepare(first.images[:size], self.device)
        labels = first.labels[:size].to(self.device)
        on_cpu = self.device.type == "cpu"
        self.run.log(
            "start",
            num_parameters=sum(p.numel() for p in self.model.parameters()),
            bytes_saved=probes.bytes_saved(self.model, x, labels),
            **({"bytes_peak": bytes_peak(self.model, x, labels)} if on_cpu else {}),
            num_train=len(self.train_set),
            num_validation=len(self.validation_set),
            **self._scores_before(),
        )

    def _scores_before(self) -> dict[str, float]:
        """What a network that has learned already scores before this training."""
        if self.experiment.source is None and self.experiment.weights is None:
            return {}
        loss, error = evaluate.measure(self.model, self.validation_set, self.input, self.device)
        return {"validation_loss": loss, "validation_error": error}

    def _computed(self) -> dict[str, Any]:
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
        }

    def _progress(self) -> Progress:
        at = self.at
        seen = at.batch * self.experiment.batch_size
        return Progress(
            epoch=at.epoch + 1,
            step=at.step,
            num_steps=self.experiment.epochs * self.num_batches,
            loss=at.loss / seen,
            error=100 * at.wrong / seen,
            validation_error=at.validation_error,
        )


def bytes_peak(model: torch.nn.Module, x: Tensor, labels: Tensor) -> int | None:
    """Most bytes that the network and one forward and backward pass on the CPU hold at once.

    Parameters, buffers, gradients, activations and what kernels allocate meanwhile, as torch's
    allocator counts them: no property of the process, whose resident memory a worker's earlier runs
    have raised for good. The optimizer's state is not in it. The model is left as it was. None
    while a profiler of the caller runs, since there is but one.
    """
    if torch.autograd.profiler._is_profiler_enabled:
        return None
    model = copy.deepcopy(model).train()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes about itself to stderr
    with torch.random.fork_rng([]), torch.autograd.profiler.profile(profile_memory=True) as found:
        classification.loss(model(x), labels).backward()
    events = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    return own + max(held, default=0)


@functools.lru_cache(maxsize=1)
def load_data(
    address: str,
    image_size: int | None,
    validation: float,
    num_train: int | None,
    num_validation: int | None,
) -> tuple[Dataset, Dataset]:
    """Training and validation set; the last pair is remembered for the next run of a sweep."""
    how: dict[str, Any] = {"image_size": image_size, "validation": validation}
    return (
        data.load(address, "train", limit=num_train, **how),
        data.load(address, "validation", limit=num_validation, **how),
    )


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
