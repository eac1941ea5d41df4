"""What commands that train do once their flags are read: check, run, report, tell."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from normlab.lab.experiment import Experiment, Sweep


class UsageError(ValueError):
    """A command that makes no sense as written."""


class RunsFailed(Exception):
    """Runs that failed, listed with their causes."""


def train_one(experiment: Experiment, out: Path, resume: bool, device: str | None) -> int:
    """Train one network in a folder of its own and return the exit code."""
    from normlab.lab.report import live
    from normlab.lab.runs import Run
    from normlab.lab.sweep import canonical
    from normlab.lab.train import train

    (experiment,) = canonical([experiment])
    _check_networks([experiment])
    chosen = find_device(device)
    run = Run.create(out, experiment)
    console = Console()
    before = run.status["state"]
    if before not in ("new", "finished") and not resume:
        raise UsageError(
            f"{run.path} holds this run, {before}; add --resume to go on with it, "
            "or choose another --out"
        )
    with live.watching_one(console, run.experiment.name) as watch:
        state = train(run, device=chosen, report=watch)
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


def run_sweep(sweep: Sweep, out: Path, jobs: int | None, device: str | None) -> int:
    """Run what is not finished yet, write the report and return the exit code."""
    from normlab.lab.report import live
    from normlab.lab.sweep import canonical, run_all

    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    experiments = canonical(sweep.experiments)
    _check_networks(experiments)
    chosen = None if device is None else str(find_device(device))
    console = Console()
    with live.watching(console) as watch:
        runs, signal = run_all(experiments, out, jobs=jobs, device=chosen, watch=watch)
    write_report(runs, [], sweep, out)
    states = [run.status["state"] for run in runs]
    if signal is not None:
        done = states.count("finished")
        console.print(
            f"interrupted with {done} of {len(runs)} runs finished; the same command goes on"
        )
        return 128 + signal
    causes: dict[str, list[str]] = {}
    for run, state in zip(runs, states):
        if state == "failed":
            causes.setdefault(run.status.get("cause", "unknown"), []).append(run.experiment.name)
    if causes:
        told = (f"{len(n)} of {len(runs)} runs failed ({n[0]}, …): {c}" for c, n in causes.items())
        raise RunsFailed("\n".join(told))
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


def sweep_in(file: Path) -> Sweep:
    """The variable SWEEP of a Python file."""
    import runpy

    if not file.is_file() or file.suffix != ".py":
        raise UsageError(f"{file} is not a Python file; see experiments/ for examples")
    found = runpy.run_path(str(file)).get("SWEEP")
    if not isinstance(found, Sweep):
        raise UsageError(f"{file} has no SWEEP = Sweep(...); see experiments/ for examples")
    return found


def find_device(text: str | None) -> Any:
    """The torch.device called that; None is a GPU if there is any."""
    import torch

    if text is None:
        from normlab.lab.train import default_device

        return default_device()
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if text not in there:
        raise UsageError(f"device {text!r} is not there; this machine has {', '.join(there)}")
    return torch.device(text)


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
