"""Norms whose statistics are each sample's own: one pattern each."""

from typing import Any, ClassVar

from normlab.checks import check_channels, check_groups, check_whole
from normlab.layer import Norm
from normlab.pattern import PatternError

DEFAULT_GROUP_SIZE = 16  # channels; Wu and He 2018, table 3b


class Grouped:
    """The constructor of norms with channels in groups, the axis (g c) of their pattern."""

    spec_options: ClassVar[dict[str, str]] = {"": "num_groups", "size": "group_size"}

    def __init__(
        self,
        num_channels: int,
        *,
        num_groups: int | None = None,
        group_size: int | None = None,
        **options: Any,
    ) -> None:
        num_groups = number_of_groups(num_channels, num_groups, group_size)
        super().__init__(num_channels, g=num_groups, **options)  # type: ignore[call-arg]
        self.num_groups = num_groups


class GroupNorm(Grouped, Norm, name="group", aliases=("gn",)):
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

    With `track_running_stats=True` evaluation uses running statistics, as in torch: the means of
    the samples' mean and unbiased variance. Unlike torch's layer, it learns weight and bias by
    default, and momentum=None averages all batches, where torch's never moves.

    Shape: (N, C, ...) -> (N, C, ...), with more than one position.

    Raises:
        ValueError: one position, so one value per statistic.

    Source: Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    >>> x = torch.randn(2, 3, 8)
    >>> torch.allclose(InstanceNorm(3)(x), torch.nn.InstanceNorm1d(3)(x), atol=1e-5)
    True
    """

    pattern = "n c ... -> n c"


class PositionNorm(Norm, name="position", aliases=("pono", "ln2d")):
    """One mean and variance per sample and position, over channels.

    y = (x - mean) / sqrt(var + eps) * weight + bias,   statistics "n c ... -> n ..."

    Layer norm as networks of channels-last axes have it, ConvNeXt's LayerNorm2d among them; at
    rank 2 it is `LayerNorm`. The positional norm of Li et al. without the statistics it hands on.
    Where all channels of a position are equal, as over a black border, gradients grow by
    1 / sqrt(eps).

    Shape: (N, C, ...) -> (N, C, ...), with more than one channel.

    Source: Li et al. 2019, https://arxiv.org/abs/1907.04312, eq. 2; in ConvNeXt, Liu et al. 2022,
    https://arxiv.org/abs/2201.03545.

    >>> x = torch.randn(2, 6, 4, 4)
    >>> last = torch.nn.functional.layer_norm(x.movedim(1, -1), (6,))
    >>> torch.allclose(PositionNorm(6)(x), last.movedim(-1, 1), atol=1e-5)
    True
    """

    pattern = "n c ... -> n ..."


class RMSNorm(Norm, name="rms"):
    """Division by the root mean square, over the pattern of any norm.

    y = x / sqrt(mean(x²) + eps) * weight + bias,   statistics "n c ... -> n ..." or another norm's

    Over a pattern that drops n there is a running mean square for evaluation, in `running_var`;
    `running_mean` stays 0.

    Args:
        num_channels: C, the size of axis 1.
        over: spec of the norm whose pattern is taken, such as "group:8" or "batch"; by name,
            "rms:group:8". "position" is torch's layer for models whose channels are the last axis.
        bias: torch's layer and the paper have none; they are bias=False.
        eps: torch's layer has the machine epsilon of the input's type.
        options: see `Norm`.

    Shape: (N, C, ...) -> (N, C, ...), any rank from 2.

    Raises:
        LookupError: no norm is written like `over`.
        ValueError: that norm is more than one pattern.

    Source: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, eq. 4.

    >>> x = torch.randn(2, 6, 4)
    >>> y = RMSNorm(6, over="instance")(x)
    >>> torch.allclose(y.square().mean(2), torch.ones(2, 6), atol=1e-3)
    True
    """

    pattern = PositionNorm.pattern
    center = False
    spec_norm = "over"  # what follows the name and a colon in a spec is the spec of a norm

    def __init__(self, num_channels: int, *, over: str = "position", **options: Any) -> None:
        self.pattern = _pattern_of(over, num_channels)
        super().__init__(num_channels, **options)
        self.over = over


def _pattern_of(spec: str, num_channels: int) -> str:
    """The pattern a norm has, sizes written in."""
    from normlab.norms import norm  # which imports this module

    layer = norm(spec, num_channels, affine=False, device="meta")
    if type(layer).forward is not Norm.forward:
        raise ValueError(
            f"rms takes the pattern of a norm that is one pattern and nothing else, which {spec!r} "
            "is not; take one such as batch, group:8, instance, layer or position"
        )
    return layer.pattern


def number_of_groups(num_channels: int, num_groups: int | None, group_size: int | None) -> int:
    """Groups as asked for, or of the size nearest to 16 that divides the channels."""
    check_channels(num_channels)
    if num_groups is None:
        num_groups = _sized(num_channels, group_size)
    elif group_size is not None:
        raise PatternError(
            f"give num_groups or group_size, not both; got {num_groups} and {group_size}"
        )
    check_groups(num_groups, num_channels)
    return num_groups


def _sized(num_channels: int, group_size: int | None) -> int:
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
