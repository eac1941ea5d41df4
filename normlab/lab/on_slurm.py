"""Sweeps as job arrays of SLURM: each task runs its part of the runs, into one shared folder.

The tasks are plain commands, `normlab sweep … --part K/N`, so that any scheduler can run them.
submitit, which submits them, is given such commands and none of our objects to pickle.
"""

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from normlab.lab import sweep_file
from normlab.lab.compute import Compute
from normlab.lab.experiment import Sweep
from normlab.lab.schedule import Schedule, ScheduleError, options_of

DEFAULT_TASKS = 16
_LOGS = "%A_%a.log"  # job and task, as sbatch writes them


@dataclasses.dataclass(frozen=True)
class Array:
    """A job array that is written down.

    Args:
        script: what sbatch takes.
        commands: of the tasks, in order.
        jobs: ids of what was submitted; none where nothing was.
    """

    script: Path
    commands: list[list[str]]
    jobs: tuple[str, ...] = ()


def write(sweep: Sweep, out: Path, compute: Compute, schedule: Schedule) -> Array:
    """Write the sweep and a job script into OUT/slurm; tasks wait for the same paths elsewhere.

    Args:
        out: folder of the runs, on a file system that all machines share.
    """
    folder = out.resolve() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    sweep_file.save(sweep, folder / "sweep.json")
    number = min(schedule.jobs or DEFAULT_TASKS, len(sweep.experiments))
    command = [
        sys.executable, "-m", "normlab.cli", "sweep", str(folder / "sweep.json"),
        "--out", str(out.resolve()), *_flags(compute), *_flags(_of_a_task(schedule)),
    ]  # fmt: skip
    settings = {
        "job_name": "normlab",
        "array": f"1-{number}",
        "output": str(folder / "logs" / _LOGS),
        **options_of(schedule.slurm),
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{k.replace('_', '-')}={shlex.quote(v)}" for k, v in settings.items()),
        f"cd {shlex.quote(str(Path.cwd()))}",
        f'exec {shlex.join(command)} --part "$SLURM_ARRAY_TASK_ID/{number}"',
    ]
    script = folder / "sweep.sbatch"
    script.write_text("\n".join(lines) + "\n")
    parts = [[*command, "--part", f"{k}/{number}"] for k in range(1, number + 1)]
    return Array(script, parts)


def submit(array: Array, schedule: Schedule, *, cluster: str = "slurm") -> Array:
    """Have submitit submit the tasks of an array, and return it with the ids of its jobs.

    Args:
        cluster: as submitit's: slurm, or local and debug to try it.

    Raises:
        ImportError: there is no submitit.
        ScheduleError: settings it does not take.
    """
    try:
        import submitit
        from submitit.helpers import CommandFunction
    except ImportError:
        raise ImportError(
            f'--on slurm needs submitit: pip install "normlab[cluster]"; or sbatch {array.script}'
        ) from None
    logs = array.script.parent / "logs" / "%j"
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(name="normlab", **_parameters(schedule, cluster))
    except (NameError, TypeError, ValueError) as error:
        raise ScheduleError(f"--slurm: {error}") from error
    with executor.batch():
        jobs = [
            executor.submit(CommandFunction(command, cwd=Path.cwd())) for command in array.commands
        ]
    return dataclasses.replace(array, jobs=tuple(job.job_id for job in jobs))


def is_here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def _parameters(schedule: Schedule, cluster: str) -> dict[str, Any]:
    """The settings as submitit wants them; those it does not know go to sbatch as they are."""
    if cluster != "slurm":
        return {}
    from submitit.slurm.slurm import SlurmExecutor

    known, given = SlurmExecutor._valid_parameters(), options_of(schedule.slurm)
    values = {k: int(v) if v.isdigit() else v for k, v in given.items()}
    parameters = {f"slurm_{k}": v for k, v in values.items() if k in known}
    others = {k: v for k, v in values.items() if k not in known}
    return {**parameters, **({"slurm_additional_parameters": others} if others else {})}


def _of_a_task(schedule: Schedule) -> Schedule:
    """The schedule of one task: as many runs at once as its cores or GPUs allow."""
    return Schedule(run_timeout=schedule.run_timeout, retry_failed=schedule.retry_failed)


def _flags(settings: Any) -> list[str]:
    """The command line of a dataclass: what differs from its defaults."""
    flags = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        flags.append(f"--{field.name.replace('_', '-')}")
        if isinstance(value, tuple):
            flags += map(str, value)
        elif value is not True:
            flags.append(str(value))
    return flags
