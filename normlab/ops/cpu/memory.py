"""Memory of outputs, and what a call needs besides.

A large tensor comes from the system page by page, at a fault each, and torch gives it back after
every step. Huge pages make that 512 times fewer faults; they are asked for on outputs of ours, on
Linux, unless NORMLAB_HUGE_PAGES=0.
"""

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable

import torch
from torch import Tensor

HUGE = 4 << 20  # bytes from which huge pages pay
PAGE = 4096
SMALL = 8192  # float64 numbers of scratch a thread keeps
MADV_HUGEPAGE = 14


def empty_like(x: Tensor) -> Tensor:
    """A tensor laid out like x, with memory of its own."""
    y = torch.empty_like(x)
    size = y.nbytes
    if size >= HUGE and (advise := _madvise()):
        start = -(-y.data_ptr() // PAGE) * PAGE
        advise(start, (y.data_ptr() + size - start) // PAGE * PAGE, MADV_HUGEPAGE)
    return y


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux") or os.environ.get("NORMLAB_HUGE_PAGES") == "0":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


class _Kept(threading.local):
    """A small scratch memory for each thread: a call is over before the thread makes another."""

    def __init__(self) -> None:
        self.scratch = torch.empty(SMALL, dtype=torch.float64)


_kept = _Kept()


def scratch(size: int) -> Tensor:
    """So many float64 numbers, of any value, for one call."""
    return _kept.scratch if size <= SMALL else torch.empty(size, dtype=torch.float64)
