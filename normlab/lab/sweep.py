"""Run the experiments of a sweep side by side, and say what has become of them.

What is finished stays finished: a sweep that was interrupted, or grew, runs only what is missing.
Several sweeps may run in one folder at once; each run is trained by one of them.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment, ExperimentError
from normlab.lab.interrupt import Interrupt
from normlab.lab.norm_names import parts
from normlab.lab.pool import IN_USE, TASK, Crew, End, Pool
from normlab.lab.runs import Run, RunError, RunInUse
from normlab.lab.schedule import Schedule

ENDED = ("finished", "diverged")  # another try would end in the same way
LOOK_SECONDS = 0.5  # between looks at runs that other processes have


@dataclass
class Activity:
    """What a sweep is doing; handed to `watch` whenever it changes.

    Args:
        experiments: all of them, in order.
        states: of those that have ended in this call or before, by id.
        causes: why some of those failed, by id.
        running: progress of those at work, by id; None until the first step.
        elsewhere: ids of those that other processes have.
        stopping: whether an interrupt is being obeyed.
    """

    experiments: tuple[Experiment, ...]
    states: dict[str, str] = field(default_factory=dict)
    causes: dict[str, str] = field(default_factory=dict)
    running: dict[str, Any] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    stopping: bool = False

    @property
    def runs_done(self) -> float:
        """Runs that have ended, with the fractions of those at work."""
        fractions = (p.step / p.num_steps for p in self.running.values() if p is not None)
        return len(self.states) + sum(fractions)


@dataclass(frozen=True)
class Outcome:
    """What has become of a sweep.

    Args:
        runs: those with a folder, in order.
        activity: the states of all, and the causes of failures.
        signal: what stopped it early; None: nothing.
        failed_before: ids of those that had failed in an earlier call and were left alone.
    """

    runs: list[Run]
    activity: Activity
    signal: int | None
    failed_before: frozenset[str]

    def count(self, state: str) -> int:
        """How many runs are in a state."""
        return list(self.activity.states.values()).count(state)


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
    compute: Compute = Compute(),  # noqa: B008
    schedule: Schedule = Schedule(),  # noqa: B008
    task: str = TASK,
    crew: Callable[[int], Crew] | None = None,
    watch: Callable[[Activity], None] = lambda activity: None,
) -> Outcome:
    """Run what has not ended yet, and say what has become of everything.

    A run that fails is recorded in its folder and does not stop the others; it is tried again only
    if the schedule says so. A run that another process has is waited for and taken from its folder.
    The first Ctrl-C lets every run write a checkpoint; a second one ends them at once.

    Args:
        root: the folder of the runs.
        compute: how each of them is computed.
        schedule: how many at once, and for how long one may be silent; its `on` and `part` are for
            the caller.
        task: what trains a run, as module:function, called as train is.
        crew: makes, for a number of runs, who trains them; None: processes of this machine.
    """
    drive = _Drive(canonical(experiments), root, schedule, watch)
    watch(drive.activity)
    if not drive.todo:
        return drive.outcome(None, root)
    with Interrupt() as interrupt:
        number = len(drive.todo)
        made = crew(number) if crew else _pool(number, compute, schedule, task)
        try:
            drive.run(made, interrupt)
        finally:
            made.stop()
    return drive.outcome(interrupt.signal, root)


def _pool(number: int, compute: Compute, schedule: Schedule, task: str) -> Pool:
    return Pool(compute, number, jobs=schedule.jobs, task=task, run_timeout=schedule.run_timeout)


class _Drive:
    """A sweep on its way: what is to do, what is claimed, what other processes have."""

    def __init__(
        self,
        experiments: tuple[Experiment, ...],
        root: Path,
        schedule: Schedule,
        watch: Callable[[Activity], None],
    ) -> None:
        self.activity, self.watch = Activity(experiments), watch
        self.todo: deque[Run] = deque()
        self._held: list[Run] = []  # by other processes
        self._looked = time.monotonic()
        self._claims: dict[str, contextlib.ExitStack] = {}
        self._retried: set[str] = set()
        for experiment in experiments:
            run = Run(root / experiment.name, experiment)
            try:
                if run.is_there() and self._is_over(Run.create(root, experiment), schedule):
                    continue
            except RunError as error:
                self._ended(experiment.id, End("failed", str(error)))
            else:
                self.todo.append(run)  # its folder is made when its turn comes
        self._failed_before = frozenset(self.activity.causes)

    def _is_over(self, run: Run, schedule: Schedule) -> bool:
        if schedule.retry_failed and run.status["state"] == "failed":
            self._retried.add(run.experiment.id)
        return self._has_ended(run)

    def outcome(self, signal: int | None, root: Path) -> Outcome:
        made = (Run(root / e.name, e) for e in self.activity.experiments)
        runs = [run for run in made if run.is_there()]
        return Outcome(runs, self.activity, signal, self._failed_before)

    def run(self, crew: Crew, interrupt: Interrupt) -> None:
        """Keep the crew busy until nothing is left, or until it has stopped for an interrupt."""
        activity = self.activity
        try:
            while True:
                if interrupt.signal is not None and not activity.stopping:
                    activity.stopping = True
                    self.todo.clear()
                    self._held.clear()
                    activity.elsewhere.clear()
                    crew.interrupt()
                self._start(crew)
                if not (activity.running or self._held or self.todo):
                    return
                self.watch(activity)
                for run, message in crew.news():
                    self._heard(run, message)
                self.watch(activity)
        finally:
            for claim in self._claims.values():
                claim.close()

    def _start(self, crew: Crew) -> None:
        """Hand out what can be had."""
        if self._held and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self.todo.extend(self._held)
            self._held.clear()
        while self.todo and crew.has_room():
            run = self.todo.popleft()
            run_id = run.experiment.id
            claim = contextlib.ExitStack()
            try:
                Run.create(run.path.parent, run.experiment)
                claim.enter_context(run.claim())
                self.activity.elsewhere.discard(run_id)
                if self._has_ended(run):  # another process has had it
                    claim.close()
                    continue
                crew.start(run)
            except RunInUse:
                self._set_aside(run)
            except RunError as error:
                claim.close()
                self._ended(run_id, End("failed", str(error)))
            else:
                self._retried.discard(run_id)
                self._claims[run_id] = claim
                self.activity.running[run_id] = None

    def _heard(self, run: Run, message: Any) -> None:
        run_id = run.experiment.id
        if not isinstance(message, End):
            self.activity.running[run_id] = message
            return
        self.activity.running.pop(run_id)
        self._claims.pop(run_id).close()
        if message.state == IN_USE and not self.activity.stopping:
            self._set_aside(run)
        else:
            self._ended(run_id, message)

    def _set_aside(self, run: Run) -> None:
        self._held.append(run)
        self.activity.elsewhere.add(run.experiment.id)

    def _has_ended(self, run: Run) -> bool:
        """Whether its folder says so, which is then noted."""
        status = run.status
        over = (*ENDED, "failed") if run.experiment.id not in self._retried else ENDED
        if status["state"] in over:
            self._ended(run.experiment.id, End(status["state"], str(status.get("cause", ""))))
        return status["state"] in over

    def _ended(self, run_id: str, end: End) -> None:
        self.activity.states[run_id] = end.state
        if end.state == "failed":
            self.activity.causes[run_id] = end.cause or "unknown"


def _canonical(experiment: Experiment) -> Experiment:
    from normlab import norms
    from normlab.surgery.weights import row_of

    layer, weights = parts(experiment.norm)
    if "+" in experiment.norm:
        row_of(weights)
    cls, options = norms.parse(layer)
    uses_batch = cls.uses_batch() or norms.parse(options.get("over", "none"))[0].uses_batch()
    together = experiment.batch_size // experiment.accumulate
    if not uses_batch:
        return experiment.replace(norm_batch_size=None, freeze_statistics=None)
    if experiment.norm_batch_size in (None, together):
        return experiment.replace(norm_batch_size=None)
    if "norm_batch_size" not in cls.spec_options.values():
        raise ExperimentError(
            f"norm {experiment.norm!r} shares statistics among all {together} images computed "
            f"together, not {experiment.norm_batch_size}; use norm batch, or accumulate"
        )
    return experiment
