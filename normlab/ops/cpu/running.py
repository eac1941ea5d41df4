"""The kernel that moves running statistics towards those of a batch."""

from collections.abc import Callable

from normlab.ops.cpu.pointers import at, get, put
from normlab.ops.cpu.words import (
    CHANNELS,
    MOMENTUM,
    RUNNING_MEAN,
    RUNNING_VAR,
    STATISTICS,
    UNBIASED,
)


def kernel(element: str) -> Callable[[int], None]:
    """running ← (1 - momentum) · running + momentum · new, the variance times `unbiased`."""
    of_real, of_wide, of_words = at(element), at("float64"), at("int64")

    def move(words):
        w, reals = of_words(words), of_wide(words)
        mean, var = of_real(get(w, RUNNING_MEAN)), of_real(get(w, RUNNING_VAR))
        statistics, channels = of_wide(get(w, STATISTICS)), get(w, CHANNELS)
        momentum, unbiased = get(reals, MOMENTUM), get(reals, UNBIASED)
        for c in range(channels):
            new = get(statistics, c)
            put(mean, c, (1 - momentum) * get(mean, c) + momentum * new)
            new = get(statistics, channels + c) * unbiased
            put(var, c, (1 - momentum) * get(var, c) + momentum * new)

    return move
