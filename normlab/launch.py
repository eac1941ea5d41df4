"""What commands that train do once their flags are read: check, run, report, tell."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from normlab.lab.compute import Compute
from normlab.lab.experiment import Experiment, Sweep
from normlab.lab.schedule import Schedule, part_of


class UsageError(ValueError):
    """A command that makes no sense as written."""


class RunsFailed(Exception):
    """Runs that failed, listed with their causes."""


def train_one(experiment: Experiment, out: Path, resume: bool, compute: Compute) -> int:
    """Train one network in a folder of its own and return the exit code."""
    from normlab.lab import pool, processes, tracking
    from normlab.lab.report import live
    from normlab.lab.runs import Run
    from normlab.lab.sweep import canonical
    from normlab.lab.train import train

    (experiment,) = canonical([experiment])
    _check(compute)
    _check_networks([experiment])
    run = Run.create(out, experiment)
    if processes.follows():  # torchrun has started the one that speaks, too
        return 0 if train(run, compute=compute) == "finished" else 1
    console = Console()
    before = run.status["state"]
    if before not in ("new", "finished") and not resume:
        raise UsageError(
            f"{run.path} holds this run, {before}; add --resume to go on with it, "
            "or choose another --out"
        )
    with (
        live.watching_one(console, run.experiment.name) as watch,
        tracking.following(run, compute.track),
        pool.memory_recorded(run),
    ):
        state = train(run, compute=compute, report=watch)
    return _tell(run, state, console)


def _tell(run: Any, state: str, console: Console) -> int:
    status = run.status
    if state == "finished":
        best = status["best_error"]
        console.print(f"{run.path}: best validation error {best:.2f} %", markup=False)
        return 0
    if state == "interrupted":
        console.print(f"{run.path}: interrupted; go on with --resume", markup=False)
        return 128 + status["signal"]
    raise RunsFailed(f"{run.path}: {status['cause']}")


def run_sweep(
    sweep: Sweep, out: Path, compute: Compute, schedule: Schedule, *, task: str | None = None
) -> int:
    """Run what has not ended yet, write the report and return the exit code.

    Args:
        task: what trains a run, as for `sweep.run_all`.
    """
    from normlab.lab.pool import TASK
    from normlab.lab.report import live
    from normlab.lab.runs import Run, find
    from normlab.lab.sweep import canonical, run_all

    task = task or TASK
    experiments = part_of(canonical(sweep.experiments), schedule.part)
    _check(compute, elsewhere=schedule.on != "here")
    _check_networks(e for e in experiments if not Run(out / e.name, e).is_there())
    if schedule.on == "slurm":
        return _submit(sweep, out, compute, schedule)
    console = Console()
    with live.watching(console) as watch:
        outcome = run_all(
            experiments, out, compute=compute, schedule=schedule, task=task, watch=watch,
            crew=_crew(out, compute, schedule, task),
        )  # fmt: skip
    if schedule.part is not None:
        console.print(f"part {schedule.part} of {out}; see all with: normlab report {out}")
    elif outcome.runs:
        ours = {run.path for run in outcome.runs}
        found, damaged = find(out)
        write_report(
            [run for run in found if run.path in ours],
            [(path, why) for path, why in damaged if path in ours],
            sweep, out,
        )  # fmt: skip
    return _judge(outcome, console)


def _judge(outcome: Any, console: Console) -> int:
    """The exit code of a sweep, after a word on what did not end well."""
    activity, total = outcome.activity, len(outcome.activity.experiments)
    done = f"{outcome.count('finished')} of {total} finished"
    if outcome.signal is not None:
        console.print(f"interrupted with {done}; the same command goes on")
        return 128 + outcome.signal
    if not activity.causes:
        return 0
    names: dict[str, list[str]] = {}
    for experiment in activity.experiments:
        if experiment.id in activity.causes:
            names.setdefault(activity.causes[experiment.id], []).append(experiment.name)
    told = [f"{done}, {len(activity.causes)} failed:"]
    for cause, of in names.items():
        others = f" and {len(of) - 1} more" if len(of) > 1 else ""
        told.append(f"  {of[0]}{others}: {cause}")
    before = len(outcome.failed_before)
    left = f"{before} of them failed before and were left alone; " if before else ""
    told.append(f"{left}--retry-failed tries them again")
    raise RunsFailed("\n".join(told))


def _crew(
    out: Path, compute: Compute, schedule: Schedule, task: str
) -> Callable[[int], Any] | None:
    """Who trains the runs, if not this machine's processes."""
    if schedule.on != "ray":
        return None
    from normlab.lab.on_ray import RayCrew

    return partial(
        RayCrew, out, compute=compute, jobs=schedule.jobs, task=task,
        run_timeout=schedule.run_timeout,
    )  # fmt: skip


def _submit(sweep: Sweep, out: Path, compute: Compute, schedule: Schedule) -> int:
    from normlab.lab import on_slurm

    array = on_slurm.write(sweep, out, compute, schedule)
    console = Console()
    if schedule.dry_run or not on_slurm.is_here():
        why = "" if schedule.dry_run else "there is no sbatch on this machine; "
        console.print(
            f"{why}{len(array.commands)} tasks are written down; submit them with\n"
            f"  sbatch {array.script}\nor have another scheduler run, for K = 1 to "
            f"{len(array.commands)},\n  {' '.join(array.commands[0][:-1])} K/{len(array.commands)}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 0
    array = on_slurm.submit(array, schedule)
    console.print(
        f"submitted {len(array.jobs)} jobs: {', '.join(array.jobs)}\n"
        f"see the runs with: normlab runs {out}; once they end: normlab report {out}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def write_report(
    runs: list[Any],
    damaged: list[Any],
    sweep: Sweep,
    out: Path,
    *,
    by: str = "samples",
    last: int | None = None,
) -> None:
    """Print the tables of runs and write their page; `by` and `last` as in `normlab report`."""
    from normlab.lab import report
    from normlab.lab.analysis import LAST_EPOCHS, analyse
    from normlab.lab.report import console

    shown, last = Console(), LAST_EPOCHS if last is None else last
    console.print_findings(shown, analyse(runs, damaged, last=last))
    file = out if out.suffix == ".html" else out / "report.html"
    page = report.build(
        runs, damaged, title=sweep.title, note=sweep.note, out=file, by=by, last=last
    )
    shown.print(f"\nreport: {page}", markup=False, soft_wrap=True)


def notes(sources: Iterable[str]) -> str:
    """What the data's own modules say a reader has to know."""
    from normlab.lab.address import resolve

    found = (getattr(resolve("data", source)[0], "NOTE", "") for source in sources)
    return " ".join(filter(None, found))


def find_device(text: str | None) -> Any:
    """The torch.device called that; None is a GPU if there is any."""
    import torch

    from normlab.lab import processes

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    there = ["cpu", *(["cuda"] if gpus else []), *gpus, *mps]
    if text is not None and text not in there:
        raise UsageError(f"device {text!r} is not there; this machine has {', '.join(there)}")
    return processes.find_device(text)


def _check(compute: Compute, *, elsewhere: bool = False) -> None:
    """Say what this machine does not have, unless another one computes, before anything runs."""
    from normlab.lab import tracking

    if not elsewhere:
        find_device(compute.device)
        tracking.check(compute.track)


def _check_networks(experiments: Iterable[Experiment]) -> None:
    """Build every network without memory: what does not fit is said before anything runs."""
    import torch

    from normlab.lab import models, probes
    from normlab.lab.address import resolve

    seen = set()
    for e in experiments:
        key = (e.data, e.model, e.norm, e.norm_batch_size, e.zero_init, e.probe)
        if key in seen:
            continue
        seen.add(key)
        resolve("data", e.data)
        with torch.device("meta"):
            model = models.build(
                e.model, 10, norm=e.norm, norm_batch_size=e.norm_batch_size, zero_init=e.zero_init
            )
        probes.Recorder(model, e.probe)
