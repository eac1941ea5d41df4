"""Norms whose statistics are each sample's own: one pattern each."""

from typing import Any

from normlab.checks import check_channels, check_groups, check_whole
from normlab.layer import Norm
from normlab.pattern import PatternError

DEFAULT_GROUP_SIZE = 16  # channels; Wu and He 2018, table 3b


class GroupNorm(Norm, name="group", aliases=("gn",)):
    """One mean and variance per sample and group of channels.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n (g c) ... -> n g"

    Args:
        num_channels: C, the size of axis 1.
        num_groups: groups the channels are split into, in order; must divide C.
        group_size: channels per group, in place of num_groups; must divide C. Without either, the
            divisor of C nearest to 16, the larger of two, and never 1 unless C is.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        PatternError: the channels do not split as asked.

    Source: Wu and He 2018, https://arxiv.org/abs/1803.08494, eq. 7.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> torch.allclose(GroupNorm(6, num_groups=6)(x), InstanceNorm(6)(x), atol=1e-6)
    True
    >>> GroupNorm(64).num_groups
    4
    """

    pattern = "n (g c) ... -> n g"
    spec_options = {"": "num_groups", "size": "group_size"}

    def __init__(
        self,
        num_channels: int,
        *,
        num_groups: int | None = None,
        group_size: int | None = None,
        **options: Any,
    ) -> None:
        check_channels(num_channels)
        if num_groups is None:
            num_groups = _num_groups(num_channels, group_size)
        elif group_size is not None:
            raise PatternError(
                f"give num_groups or group_size, not both; got {num_groups} and {group_size}"
            )
        check_groups(num_groups, num_channels)
        super().__init__(num_channels, g=num_groups, **options)
        self.num_groups = num_groups


class LayerNorm(Norm, name="layer", aliases=("ln",)):
    """One mean and variance per sample, over channels and positions.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> n"

    weight and bias are per channel, as in the group norm paper; `normlab.nn.LayerNorm` is torch's.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Source: Ba et al. 2016, https://arxiv.org/abs/1607.06450.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> torch.allclose(LayerNorm(6)(x), GroupNorm(6, num_groups=1)(x), atol=1e-6)
    True
    """

    pattern = "n c ... -> n"


class InstanceNorm(Norm, name="instance", aliases=("in",)):
    """One mean and variance per sample and channel, over positions.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> n c"

    Shape: (N, C, ...) -> (N, C, ...), with more than one position.

    Raises:
        ValueError: one position, so one value per statistic.

    Source: Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    >>> x = torch.randn(2, 3, 8)
    >>> torch.allclose(InstanceNorm(3)(x), torch.nn.InstanceNorm1d(3)(x), atol=1e-5)
    True
    """

    pattern = "n c ... -> n c"


def _num_groups(num_channels: int, group_size: int | None) -> int:
    """Groups of the size asked for, or of the size nearest to 16 that divides the channels."""
    if group_size is None:
        divisors = [d for d in range(2, num_channels + 1) if num_channels % d == 0] or [1]
        group_size = min(divisors, key=lambda d: (abs(d - DEFAULT_GROUP_SIZE), -d))
    check_whole("group_size", group_size)
    if group_size < 1 or num_channels % group_size:
        divisors = [d for d in range(1, num_channels + 1) if num_channels % d == 0]
        raise PatternError(
            f"{num_channels} channels do not split into groups of {group_size} channels; "
            f"choose one of {', '.join(map(str, divisors))}"
        )
    return num_channels // group_size
