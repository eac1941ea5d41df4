"""Differences of means over seeds, with 95 % intervals; neither torch nor numpy is needed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1 … 30 degrees of freedom, then for some more:
# NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_T95_BEYOND = {1000: 1.962, 120: 1.980, 60: 2.000, 40: 2.021, 31: 2.042}


@dataclass(frozen=True)
class Difference:
    """Mean of one group minus mean of another; negative is better.

    Args:
        half: half the width of the 95 % interval; None where seeds show no spread.
        effect: the difference in units of the standard deviation over seeds: the pooled one of
            `welch`, that of the differences of `paired`.
        p: two-sided, of the paired t-test; None where there is no interval, and of `welch`.
    """

    value: float
    half: float | None
    effect: float | None
    num_seeds: tuple[int, int]
    p: float | None = None

    @property
    def significant(self) -> bool:
        return self.half is not None and abs(self.value) > self.half

    @property
    def seeds(self) -> str:
        first, second = self.num_seeds
        if first == second:
            return f"{plural(first, 'seed')} each"
        return f"{first} and {plural(second, 'seed')}"


def welch(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """Mean of a minus mean of b, with Welch's interval; None if one of them is empty.

    The fractional degrees of freedom are rounded down, which widens the interval.
    """
    if not a or not b:
        return None
    value, seeds = statistics.fmean(a) - statistics.fmean(b), (len(a), len(b))
    if min(seeds) < 2:
        return Difference(value, None, None, seeds)
    var_a, var_b = statistics.variance(a), statistics.variance(b)
    if var_a == var_b == 0:
        return Difference(value, None, None, seeds)
    from_a, from_b = var_a / len(a), var_b / len(b)
    freedom = (from_a + from_b) ** 2 / (from_a**2 / (len(a) - 1) + from_b**2 / (len(b) - 1))
    pooled = ((len(a) - 1) * var_a + (len(b) - 1) * var_b) / (len(a) + len(b) - 2)
    half = quantile(freedom) * math.sqrt(from_a + from_b)
    return Difference(value, half, value / math.sqrt(pooled), seeds)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Mean over common seeds of a minus b, with the interval of the paired t-test.

    Runs of one seed start from the same weights and see the same images, so that what the seed
    does to both of them drops out. None if no seed is in both.

    >>> paired({0: 10.0, 1: 20.0, 7: 99.0}, {0: 9.0, 1: 19.0}).value
    1.0
    """
    apart = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    if not apart:
        return None
    value, seeds = statistics.fmean(apart), (len(apart), len(apart))
    std = statistics.stdev(apart) if len(apart) > 1 else 0.0
    if std == 0:
        return Difference(value, None, None, seeds)
    error, freedom = std / math.sqrt(len(apart)), len(apart) - 1
    p = two_sided(value / error, freedom)
    return Difference(value, quantile(freedom) * error, value / std, seeds, p)


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of a mean over seeds; None for fewer than two values."""
    if len(values) < 2:
        return None
    return quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def two_sided(t: float, freedom: int) -> float:
    """Probability that Student's t is further from 0 than t, on either side.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, finite sums for whole degrees of freedom.

    >>> round(two_sided(4.303, 2), 4), round(two_sided(-12.706, 1), 4)
    (0.05, 0.05)
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sin, cos = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else cos if odd else 1.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cos * cos
        total += term
    within = 2 / math.pi * (angle + sin * total) if odd else sin * total
    return max(1 - within, 0.0)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that one false finding in all is as rare as in one.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics 6, https://www.jstor.org/stable/4615733.

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min((len(ps) - rank) * ps[i], 1.0))
        adjusted[i] = largest
    return adjusted


def quantile(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's t for at least one degree of freedom."""
    whole = math.floor(freedom + 1e-9)
    if whole <= len(_T95):
        return _T95[max(whole, 1) - 1]
    return next(t for least, t in _T95_BEYOND.items() if whole >= least)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
