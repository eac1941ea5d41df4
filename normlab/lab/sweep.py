"""Run the experiments of a sweep side by side, each in a process of its own.

What is finished stays finished: a sweep that was interrupted, or grew, runs only what is missing.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.interrupt import Interrupt
from normlab.lab.norm_names import parts
from normlab.lab.runs import Run

ENDED = ("finished", "diverged")  # another try would end in the same way
REPORT_SECONDS = 0.2  # at least, between two messages of a worker about its progress


@dataclass
class Activity:
    """What a sweep is doing; handed to `watch` whenever it changes.

    Args:
        experiments: all of them, in order.
        states: of those that have ended in this call or before, by id.
        running: progress of those at work, by id; None until the first step.
        stopping: whether an interrupt is being obeyed.
    """

    experiments: tuple[Experiment, ...]
    states: dict[str, str] = field(default_factory=dict)
    running: dict[str, Any] = field(default_factory=dict)
    stopping: bool = False

    @property
    def runs_done(self) -> float:
        """Runs that have ended, with the fractions of those at work."""
        fractions = (p.step / p.num_steps for p in self.running.values() if p is not None)
        return len(self.states) + sum(fractions)


def canonical(experiments: Iterable[Experiment]) -> tuple[Experiment, ...]:
    """The experiments without settings that do nothing, and without the repetitions this leaves.

    A norm that takes each sample for itself is the same run for every norm_batch_size.

    Raises:
        ExperimentError: a norm that cannot share statistics among part of a batch.
        LookupError: no norm is called like that.
    """
    return tuple(dict.fromkeys(_canonical(e) for e in experiments))


def run_all(
    experiments: Iterable[Experiment],
    root: Path,
    *,
    jobs: int | None = None,
    device: str | None = None,
    watch: Callable[[Activity], None] = lambda activity: None,
) -> tuple[list[Run], int | None]:
    """Run what has not ended yet, and return all runs and the signal that stopped them early.

    A run that fails is recorded in its folder and does not stop the others. The first Ctrl-C lets
    every run write a checkpoint; a second one ends them at once.

    Args:
        root: the folder of the runs.
        jobs: processes side by side; None: one per core, or per GPU.
        device: where runs compute, as in "cpu" or "cuda:0"; None: a GPU each if there are any.

    Raises:
        RunError: a folder that cannot be used.
    """
    experiments = canonical(experiments)
    runs = [Run.create(root, e) for e in experiments]
    activity = Activity(experiments)
    todo: deque[Run] = deque()
    for run in runs:
        state = run.status["state"]
        if state in ENDED:
            activity.states[run.experiment.id] = state
        else:
            todo.append(run)
    watch(activity)
    if not todo:
        return runs, None
    with Interrupt() as interrupt:
        devices = _devices(device)
        jobs = jobs or (len(devices) if devices[0] != "cpu" else _cores())
        pool = [_Worker(devices[i % len(devices)]) for i in range(min(jobs, len(todo)))]
        try:
            _feed(pool, todo, activity, interrupt, watch)
        finally:
            for worker in pool:
                worker.stop()
        return runs, interrupt.signal


def _feed(
    pool: list["_Worker"],
    todo: deque[Run],
    activity: Activity,
    interrupt: Interrupt,
    watch: Callable[[Activity], None],
) -> None:
    """Keep the workers busy until nothing is left, or until they have stopped for an interrupt."""
    while True:
        if interrupt.signal is not None and not activity.stopping:
            activity.stopping = True
            todo.clear()
            for worker in pool:
                worker.interrupt()
        for worker in pool:
            if worker.run is None and todo:
                worker.start(todo.popleft())
                activity.running[worker.run_id] = None
        busy = {worker.connection: worker for worker in pool if worker.run is not None}
        if not busy:
            return
        watch(activity)
        for connection in wait(list(busy), timeout=0.5):
            worker = busy[connection]  # type: ignore[index]
            run_id = worker.run_id
            message = worker.receive()
            if isinstance(message, str):
                activity.running.pop(run_id)
                activity.states[run_id] = message
            else:
                activity.running[run_id] = message
        watch(activity)


class _Worker:
    """A process that trains runs one after the other and tells how it goes."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.run: Run | None = None
        self.asked_to_stop = False
        self._spawn()

    @property
    def run_id(self) -> str:
        assert self.run is not None
        return self.run.experiment.id

    def start(self, run: Run) -> None:
        self.run = run
        self.connection.send(run.path)

    def receive(self) -> Any:
        """Progress, or the state in which the run has ended."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            message = self._record_death()
        if isinstance(message, str):
            self.run = None
        return message

    def interrupt(self) -> None:
        self.asked_to_stop = True
        if self.run is not None and self.process.pid:
            os.kill(self.process.pid, signal.SIGTERM)

    def stop(self) -> None:
        self.connection.close()
        self.process.join(0.5 if self.run is None else 0)
        self.process.kill()
        self.process.join()

    def _spawn(self) -> None:
        # not forked: torch's threads do not survive a fork
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.device), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()

    def _record_death(self) -> str:
        """The process is gone without a word: say so in the run's status, and replace it."""
        assert self.run is not None
        self.process.join()
        code = self.process.exitcode or 0
        if self.asked_to_stop and code == -signal.SIGTERM:  # before training had begun
            self.run.set_status("interrupted", signal=signal.SIGTERM)
            return "interrupted"
        cause = f"its process ended with exit code {code}"
        if code < 0:
            cause = f"its process was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            cause += "; the machine may be out of memory: try a smaller batch, or fewer jobs"
        self.run.set_status("failed", cause=cause)
        self._spawn()
        return "failed"


class _one_thread:
    """While entered, new processes start with one thread of arithmetic each."""

    def __enter__(self) -> None:
        self._previous = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"

    def __exit__(self, *error: object) -> None:
        del os.environ["OMP_NUM_THREADS"]
        if self._previous is not None:
            os.environ["OMP_NUM_THREADS"] = self._previous


def _work(connection: Connection, device: str) -> None:
    """The life of a worker: paths come in; progress and final states go out."""
    # Ctrl-C reaches the whole group of processes; the parent passes it on as SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from normlab.lab.train import train

    torch.set_num_threads(1)
    while True:
        try:
            run = Run.open(connection.recv())
        except EOFError:
            return
        last = 0.0

        def report(progress: Any) -> None:
            nonlocal last
            if time.monotonic() - last > REPORT_SECONDS:
                last = time.monotonic()
                connection.send(progress)

        try:
            state = train(run, device=torch.device(device), report=report)
        except (KeyboardInterrupt, BrokenPipeError):
            return
        except Exception:
            state = "failed"  # the cause is in status.json
        connection.send(state)


def _canonical(experiment: Experiment) -> Experiment:
    from normlab import norms
    from normlab.surgery.weights import row_of

    layer, weights = parts(experiment.norm)
    if "+" in experiment.norm:
        row_of(weights)
    cls, options = norms.parse(layer)
    uses_batch = cls.uses_batch() or norms.parse(options.get("over", "none"))[0].uses_batch()
    together = experiment.batch_size // experiment.accumulate
    if experiment.norm_batch_size in (None, together) or not uses_batch:
        return experiment.replace(norm_batch_size=None)
    if "norm_batch_size" not in cls.spec_options.values():
        raise ExperimentError(
            f"norm {experiment.norm!r} shares statistics among all {together} images computed "
            f"together, not {experiment.norm_batch_size}; use norm batch, or accumulate"
        )
    return experiment


def _devices(device: str | None) -> list[str]:
    if device is not None:
        return [device]
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]


def _cores() -> int:
    """Cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
