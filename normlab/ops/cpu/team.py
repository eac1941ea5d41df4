"""Running a kernel on the threads torch itself uses.

A kernel is called once per thread of a team and asks the team who it is. The team is that of the
OpenMP library torch has loaded: it has torch.get_num_threads() members, there is no second pool to
fight with, and starting costs microseconds. Without such a library, and in a forked child, whose
team has stayed behind in the parent, a kernel runs on the calling thread alone.
"""

import array
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from normlab.ops.cpu.jit import Entry
from normlab.ops.cpu.words import BARRIER, NUM_THREADS, THREAD_NUM


class OpenMP(NamedTuple):
    """Addresses of the functions a kernel calls, and the one that starts a team."""

    thread_num: int
    num_threads: int
    barrier: int
    parallel: Callable | None


ALONE = OpenMP(0, 0, 0, None)
_forked = False


def run(kernel: Entry, block: array.array, num_threads: int) -> None:
    """Call the kernel on each of so many threads; the first words are the team's to fill in."""
    address, _ = block.buffer_info()
    if num_threads == 1:
        kernel(address)
        return
    team = openmp()
    block[THREAD_NUM], block[NUM_THREADS], block[BARRIER] = team[:3]
    if team.parallel is None:
        kernel(address)
    else:
        team.parallel(kernel, address, num_threads, 0)


def num_threads() -> int:
    """Threads a large kernel runs on."""
    return 1 if _forked else torch.get_num_threads()


@functools.cache
def openmp() -> OpenMP:
    """The OpenMP library of this process that starts teams as GNU's does; torch's own on Linux."""
    for path in _loaded_libraries():
        library = ctypes.CDLL(path)
        try:
            functions = (
                library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_barrier,
            )  # fmt: skip
            parallel = library.GOMP_parallel
        except AttributeError:
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        thread_num, num_threads, barrier = (
            ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions
        )
        return OpenMP(thread_num, num_threads, barrier, parallel)
    return ALONE


def _loaded_libraries() -> list[str]:
    """Paths of OpenMP libraries in this process, torch's first."""
    if sys.platform != "linux":
        return []
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    known = [p for p in paths if Path(p).name.startswith(("libgomp", "libomp", "libiomp5"))]
    home = str(Path(torch.__file__).parent)
    return sorted(known, key=lambda p: (not p.startswith(home), p))


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
