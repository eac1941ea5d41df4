"""Two vectors at a time, which for bfloat16 is one reading of memory.

The halves of a pair are the even and the odd elements of bfloat16, which take a shift and a mask to
widen, and the first and the last of other types.
"""

from normlab.ops.cpu.parallel import jit
from normlab.ops.cpu.pointers import load_first, load_part, load_second

FIRST, SECOND = 0, -1


@jit
def take(pointer, i, n):
    """A half of the pair at i, or the first n elements."""
    if n == FIRST:
        return load_first(pointer, i)
    if n == SECOND:
        return load_second(pointer, i)
    return load_part(pointer, i, n)
