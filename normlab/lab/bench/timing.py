"""Seconds of functions that take turns in one process, so that a slow moment hits all of them."""

import contextlib
import functools
import math
import random
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)
Call = Callable[[], object]
Progress = Callable[[int, int], None]  # rounds done, rounds in all

TRIES = 5  # samples taken where one after the other is disturbed
MAX_WAIT = 0.02  # of a sample's time, above which it counts as disturbed
# Of a sample; a shorter call is repeated within it. Not more on the CPU, where a repeated copy
# would find all in cache; more on a GPU, whose first call has the host's delay in it.
HOST_SECONDS = 0.0002
CUDA_SECONDS = 0.01
_WARM_UP = 3  # calls; the first of them compiles


def host_seconds(call: Call, repeats: int) -> float:
    """Seconds that `repeats` calls take together."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - start


def cuda_seconds(call: Call, repeats: int, *, device: str) -> float:
    """Seconds that `repeats` calls take together on a GPU, by its own clock."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1000


def waiting_seconds(tasks: Path = Path("/proc/self/task")) -> float | None:
    """Seconds the threads of this process have been ready and without a core, so far.

    None where the system does not tell; Linux does.
    """
    waited = []
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended
                waited.append(int((task / "schedstat").read_text().split()[1]))
    return sum(waited) / 1e9 if waited else None


class Timer:
    """Times calls; a sample during which the process waited for a core is taken again.

    Args:
        lasts: seconds that a number of calls take together.
        waiting: seconds waited for a core so far; None where that is not known, and then no sample
            is rejected.
        min_seconds: of a sample.
    """

    def __init__(
        self,
        lasts: Callable[[Call, int], float] = host_seconds,
        waiting: Callable[[], float | None] = waiting_seconds,
        min_seconds: float = HOST_SECONDS,
    ) -> None:
        self.lasts = lasts
        self.waiting = waiting
        self.min_seconds = min_seconds
        self.num_disturbed: int | None = None if waiting() is None else 0

    @classmethod
    def of(cls, device: str) -> "Timer":
        """The clock of a device."""
        if torch.device(device).type == "cuda":
            lasts = functools.partial(cuda_seconds, device=device)
            return cls(lasts, min_seconds=CUDA_SECONDS)
        return cls()

    def seconds(self, call: Call, repeats: int = 1) -> float:
        """Seconds per call; of samples that were all disturbed, the one that waited least."""
        taken = []
        for _ in range(TRIES):
            before = self.waiting()
            seconds = self.lasts(call, repeats)
            waited = (self.waiting() or 0) - (before or 0)
            if waited <= MAX_WAIT * seconds:
                return seconds / repeats
            taken.append((waited / seconds, seconds / repeats))
        self.num_disturbed = (self.num_disturbed or 0) + 1
        return min(taken)[1]


def alternate(
    candidates: dict[Name, Call],
    rounds: int,
    *,
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> dict[Name, list[float]]:
    """Seconds per call of each candidate in each round.

    All are called until they are warm; then each is timed once a round, in an order that changes
    by round. What the same index of two lists holds was measured side by side, so ratios are taken
    there, and the median after that.

    >>> list(map(len, alternate({"a": list, "b": dict}, 3).values()))
    [3, 3]
    """
    timer = timer or Timer()
    repeats = {name: _repeats(call, timer) for name, call in candidates.items()}
    taken: dict[Name, list[float]] = {name: [] for name in candidates}
    for done in range(rounds):
        for name in random.Random(done).sample(list(candidates), len(candidates)):
            taken[name].append(timer.seconds(candidates[name], repeats[name]))
        if progress is not None:
            progress(done + 1, rounds)
    return taken


def _repeats(call: Call, timer: Timer) -> int:
    """Warm up, and tell how many calls make up a sample."""
    seconds = min(timer.lasts(call, 1) for _ in range(_WARM_UP))
    return math.ceil(timer.min_seconds / max(seconds, 1e-7))
