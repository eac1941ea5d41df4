"""Where and how many at a time the runs of a sweep are computed; not what they find.

Imports neither torch nor data: the command line builds its flags from these fields.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")


class ScheduleError(ValueError):
    """A way of running a sweep that is not possible; says what is."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the runs of a sweep are spread; their results are the same for all of these.

    Raises:
        ScheduleError: a number out of its range, or settings that do nothing together.
    """

    jobs: int | None = None
    """Runs side by side; None: one per GPU, or as many as the cores allow. On slurm, the tasks of
    the array; None: at most 16."""
    run_timeout: float | None = None
    """Seconds without a word of a run after which it is ended; None: never."""
    retry_failed: bool = False
    """Try runs again that failed in an earlier call."""
    part: str | None = None
    """K/N: every N-th run, beginning with the K-th; for N jobs of any scheduler."""
    on: Literal["here", "ray", "slurm"] = "here"
    """Processes of this machine, actors of a Ray cluster, or a job array of SLURM."""
    slurm: tuple[str, ...] = ()
    """What sbatch is told, as partition=gpu time=60 gpus_per_node=1."""
    dry_run: bool = False
    """Write SLURM's job script and submit nothing."""

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ScheduleError(f"jobs must be at least 1, got {self.jobs}")
        if self.run_timeout is not None and not self.run_timeout > 0:
            raise ScheduleError(f"run_timeout must be more than 0 seconds, got {self.run_timeout}")
        if (self.slurm or self.dry_run) and self.on != "slurm":
            raise ScheduleError(f"slurm and dry_run are for on slurm, not on {self.on}")
        if self.part is not None and self.on == "slurm":
            raise ScheduleError("on slurm makes the parts itself; leave out part")
        part_of((), self.part)
        options_of(self.slurm)


def part_of(items: Sequence[T], part: str | None) -> tuple[T, ...]:
    """Every N-th item beginning with the K-th, for a part K/N; all for None.

    >>> part_of("abcdefg", "2/3")
    ('b', 'e')
    """
    if part is None:
        return tuple(items)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ScheduleError(f"part must be K/N with K from 1 to N, as 3/16, got {part!r}")
    return tuple(items[int(match[1]) - 1 :: int(match[2])])


def options_of(settings: Sequence[str]) -> dict[str, str]:
    """The settings of SLURM by name, written with underscores.

    >>> options_of(["gpus-per-node=1", "time=60"])
    {'gpus_per_node': '1', 'time': '60'}
    """
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_-]*", key) or not value.isprintable():
            raise ScheduleError(f"slurm takes key=value, as partition=gpu, got {setting!r}")
        found[key.replace("-", "_")] = value
    return found
