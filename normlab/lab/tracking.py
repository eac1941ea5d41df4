"""Trackers that hear what a run logs, besides its own files: TensorBoard, Trackio, W&B.

Only what was asked for leaves this machine, under the tracker's own settings (WANDB_MODE, …). The
fields of the experiment and the numbers of each epoch are handed on, with secrets masked.
"""

import contextlib
import dataclasses
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from normlab.lab import tensorboard
from normlab.lab.compute import ComputeError
from normlab.lab.environment import presentable
from normlab.lab.runs import Run

Write = Callable[[Mapping[str, Any]], None]


def check(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed, before anything is trained.

    Raises:
        ComputeError: says what to install.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            package = "normlab[dev]" if name == "tensorboard" else name
            raise ComputeError(f'--track {name} needs {name}: pip install "{package}"')


@contextmanager
def following(run: Run, names: Sequence[str]) -> Iterator[None]:
    """While entered, trackers hear the events of a run: TensorBoard if installed, and those named.

    A tracker that fails says so in one warning and hears no more; the run goes on.
    """
    wanted = dict.fromkeys(names)
    if tensorboard.is_installed():
        wanted |= {"tensorboard": None}
    with contextlib.ExitStack() as stack:
        for name in wanted:
            follow = stack.enter_context(_guarded(name, run))
            run.followers.append(follow)
            stack.callback(run.followers.remove, follow)
        yield


@contextmanager
def _guarded(name: str, run: Run) -> Iterator[Write]:
    """A tracker that hears of epochs and never raises."""
    stack = contextlib.ExitStack()
    write: Write | None = None
    failed = False

    def follow(event: Mapping[str, Any]) -> None:
        nonlocal write, failed
        if failed or event.get("event") != "epoch" or "samples" not in event:
            return
        try:
            if write is None:  # not before, so that a run that cannot start leaves no trace
                write = stack.enter_context(TRACKERS[name](run))
            write({k: v for k, v in event.items() if isinstance(v, int | float)})
        except Exception as error:
            failed = True
            warnings.warn(
                f"{name} follows {run.path} no longer: {type(error).__name__}: "
                f"{presentable(str(error))}; the run goes on, and metrics.jsonl has everything",
                stacklevel=2,
            )

    try:
        yield follow
    finally:
        with contextlib.suppress(Exception):  # all epochs are told by now
            stack.close()


def _tensorboard(run: Run) -> AbstractContextManager[Write]:
    return tensorboard.writing(run.path / "tensorboard")


@contextmanager
def _wandb(run: Run) -> Iterator[Write]:
    import wandb

    # the numbers were asked for; source code, git and what a program prints were not
    settings = wandb.Settings(console="off", disable_git=True, save_code=False)
    opened = wandb.init(
        project=_project(run), name=run.experiment.name, id=run.path.name, config=_config(run),
        resume="allow", settings=settings,
    )  # fmt: skip
    try:
        yield lambda numbers: opened.log(dict(numbers), step=int(numbers["samples"]))
    finally:
        opened.finish()


@contextmanager
def _trackio(run: Run) -> Iterator[Write]:
    import trackio

    trackio.init(
        project=_project(run), name=run.experiment.name, config=_config(run), resume="allow",
        embed=False,
    )  # fmt: skip
    try:
        yield lambda numbers: trackio.log(dict(numbers), step=int(numbers["samples"]))
    finally:
        trackio.finish()


# name in --track: what opens a writer of events for a run
TRACKERS: dict[str, Callable[[Run], AbstractContextManager[Write]]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}


def _project(run: Run) -> str:
    """Runs of one folder are shown together."""
    return run.path.resolve().parent.name or "normlab"


def _config(run: Run) -> dict[str, Any]:
    return presentable(dataclasses.asdict(run.experiment))
