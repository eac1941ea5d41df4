"""What a person watches while runs go on: what runs, loss, error, time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from normlab.lab.report.tables import clean

_SPEED_SECONDS = 3600.0  # over which the speed is averaged: runs differ


@contextmanager
def watching(console: Console) -> Iterator[Callable[[Any], None]]:
    """Show a sweep while it runs; yields what `sweep.run_all` calls.

    On a terminal a live table; elsewhere a line for every run that ends.
    """
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[runs]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=_SPEED_SECONDS,
    )
    task = progress.add_task("starting", total=None, runs="")
    live = Live(progress, console=console, refresh_per_second=4, transient=True)
    told: set[str] = set()

    def watch(activity: Any) -> None:
        total, done = len(activity.experiments), len(activity.states)
        if console.is_terminal:
            progress.update(
                task,
                description=_doing(activity),
                total=total,
                completed=activity.runs_done,
                runs=f"{done} of {total} runs",
            )
            live.update(Group(_table(activity), progress))
            return
        if not told and done and not activity.running:
            finished = sum(state != "failed" for state in activity.states.values())
            console.print(f"{finished} of {total} runs were finished before")
            told.update(activity.states)
        for experiment in activity.experiments:
            if experiment.id in activity.states and experiment.id not in told:
                told.add(experiment.id)
                state = activity.states[experiment.id]
                console.print(f"{len(told)} of {total}  {experiment.name}  {state}", markup=False)

    if not console.is_terminal:
        yield watch
        return
    with live:
        yield watch


@contextmanager
def watching_one(console: Console, name: str) -> Iterator[Callable[[Any], None]]:
    """Show one run while it trains; yields what `train` calls after every step."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = progress.add_task(Text(clean(name)).plain, total=None, numbers="")
    epoch = 1

    def report(p: Any) -> None:
        nonlocal epoch
        progress.update(task, total=p.num_steps, completed=p.step, numbers=_numbers(p))
        if p.epoch != epoch:
            epoch = p.epoch
            shown = f"epoch {p.epoch - 1}: validation error {p.validation_error:.2f} %"
            progress.console.print(shown, markup=False, highlight=False)

    with progress:
        yield report


def _doing(activity: Any) -> str:
    if activity.stopping:
        return "writing checkpoints"
    elsewhere = len(activity.elsewhere)
    return f"training, {elsewhere} elsewhere" if elsewhere else "training"


def _table(activity: Any) -> RenderableType:
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for column in ("run", "epoch", "loss", "training error %", "validation error %"):
        table.add_column(column, justify="left" if column == "run" else "right", style="dim")
    for experiment in activity.experiments:
        if experiment.id not in activity.running:
            continue
        p = activity.running[experiment.id]
        cells = ["starting", "", "", ""] if p is None else _cells(p, experiment.epochs)
        table.add_row(Text(clean(experiment.name)), *cells)
    return table


def _cells(p: Any, epochs: int) -> list[str]:
    validation = "" if p.validation_error is None else f"{p.validation_error:.1f}"
    return [f"{p.epoch}/{epochs}", f"{p.loss:.3f}", f"{p.error:.1f}", validation]


def _numbers(p: Any) -> str:
    return f"epoch {p.epoch}  loss {p.loss:.3f}  error {p.error:.1f} %"
