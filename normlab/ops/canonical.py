"""Patterns as kernels see them: "(b n) (g c) s -> b g" in one of two memory layouts.

Nearly every norm is this one form with some sizes 1, so kernels need no pattern of their own. What
is not this form has no kernel.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from normlab import pattern as patterns
from normlab.pattern import Geometry, product


@dataclass(frozen=True)
class Form:
    """x seen as (slices · samples, groups · channels, positions); a statistic per slice and group.

    Channels first, memory is in that order; channels last, positions come before channels.
    Statistic (b, g) is at b · groups + g, over samples · channels · positions values; weight and
    bias are at g · channels + c.

    Args:
        channels: per group.
    """

    slices: int
    samples: int
    groups: int
    channels: int
    positions: int

    @property
    def count(self) -> int:
        """Values per statistic."""
        return self.samples * self.channels * self.positions


def canonical(pattern: str, shape: Sequence[int], channels_last: bool) -> Form | None:
    """The form of a pattern laid over a shape, or None if it has another.

    Args:
        shape: (N, C, ...).
        channels_last: memory is (N, ..., C), not (N, C, ...).

    >>> canonical("n (g=2 c) ... -> n g", (5, 6, 4, 4), channels_last=False)
    Form(slices=5, samples=1, groups=2, channels=3, positions=16)
    >>> canonical("n c ... -> c", (5, 6, 4, 4), channels_last=True)
    Form(slices=1, samples=5, groups=6, channels=1, positions=16)
    >>> canonical("n c -> n", (5, 6), channels_last=False)
    Form(slices=5, samples=1, groups=1, channels=6, positions=1)

    Positions that are kept are slices where memory has them next to the samples:

    >>> canonical("n c h w -> n h w", (5, 6, 4, 4), channels_last=True)
    Form(slices=80, samples=1, groups=1, channels=6, positions=1)
    >>> canonical("n c h w -> n h w", (5, 6, 4, 4), channels_last=False) is None
    True
    """
    if patterns.are_plain(shape):
        return _remembered(pattern, tuple(shape), channels_last)
    return _canonical(pattern, tuple(shape), channels_last)


def nearest(pattern: str, shape: Sequence[int], channels_last: bool) -> tuple[Form | None, bool]:
    """The form in this layout, else in the other, at the price of copies; and in which it is."""
    form = canonical(pattern, shape, channels_last)
    if form is not None:
        return form, channels_last
    return canonical(pattern, shape, not channels_last), not channels_last


def _canonical(pattern: str, shape: tuple[int, ...], channels_last: bool) -> Form | None:
    geometry = patterns.geometry(pattern, shape)
    first, last = geometry.channels[0], geometry.channels[-1]
    rank = len(geometry.split)
    samples = _kept_then_reduced(geometry, range(first))
    channels = _kept_then_reduced(geometry, geometry.channels)
    positions = _kept_then_reduced(geometry, range(last + 1, rank))
    if channels is None or positions is None:
        return None
    if positions[0] == 1:
        return None if samples is None else Form(*samples, *channels, positions[1])
    # kept positions: slices, if no axis with another fate lies between them and the samples
    joined = _kept_then_reduced(geometry, [*range(first), *range(last + 1, rank)])
    adjacent = channels_last or shape[1] == 1
    if not adjacent or joined is None or channels[0] != 1:
        return None
    return Form(joined[0], 1, *channels, joined[1])


_remembered = functools.lru_cache(maxsize=1024)(_canonical)


def _kept_then_reduced(geometry: Geometry, axes: Sequence[int]) -> tuple[int, int] | None:
    """Sizes of the kept and the reduced among these axes; None if a kept one follows a reduced."""
    axes = [i for i in axes if geometry.split[i] != 1]
    fates = [i in geometry.reduced for i in axes]
    if fates != sorted(fates):
        return None
    kept = product([geometry.split[i] for i in axes if i not in geometry.reduced])
    return kept, product([geometry.split[i] for i in axes if i in geometry.reduced])
