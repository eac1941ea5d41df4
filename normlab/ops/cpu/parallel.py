"""What kernels do about each other: who is there, waiting, and dealing out work."""

from numba import njit

from normlab.ops.cpu.pointers import call, get
from normlab.ops.cpu.words import BARRIER, NUM_THREADS, THREAD_NUM

# division by 0 is inf, so that kernels cannot raise; Python never calls what they are made of
_OPTIONS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
jit = njit(**_OPTIONS)
inlined = njit(**_OPTIONS, inline="always")  # for what is called so often that calling costs


@jit
def who(words):
    """This thread's number, and how many there are."""
    if get(words, THREAD_NUM) == 0:
        return 0, 1
    return call(get(words, THREAD_NUM)), call(get(words, NUM_THREADS))


@jit
def meet(words, size):
    """Wait until all threads are here."""
    if size > 1:
        call(get(words, BARRIER))


@jit
def share(count, rank, size):
    """From and to of this thread's part of so many."""
    return count * rank // size, count * (rank + 1) // size
