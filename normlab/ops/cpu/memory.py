"""Memory of outputs, and how tensors lie in memory.

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


def is_channels_last(x: Tensor) -> bool:
    """Whether memory is contiguous with axis 1 last."""
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    if x.dim() == 5:
        return x.is_contiguous(memory_format=torch.channels_last_3d)
    return x.movedim(1, -1).is_contiguous()


def formatted(x: Tensor) -> Tensor:
    """x, or if it has gaps or overlaps a tensor without data that lies as a copy of it would."""
    return x if is_channels_last(x) else torch.empty_like(x, device="meta")


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """x in contiguous memory with axis 1 last or in its place; itself if it is."""
    if not channels_last:
        return x if x.is_contiguous() else x.contiguous()
    return x if is_channels_last(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def in_format_of(x: Tensor, y: Tensor) -> Tensor:
    """y with the strides torch.empty_like(x) has."""
    wanted = torch.empty_like(x, device="meta").stride()
    return y if y.stride() == wanted else torch.empty_like(x).copy_(y)
