"""Every norm: its pattern, its equation, its paper. Writing a class here is all a new norm takes.

    batch       statistics of the batch, running averages in evaluation
    sample      statistics of each sample
    mixed       several patterns
    pointwise   no statistics

`norm("group:8", 64)` builds one by name; `available()` lists the names.
"""

import functools
from collections.abc import Callable
from typing import Any

from normlab.layer import ALIASES, CATALOGUE, Norm
from normlab.norms.batch import BatchNorm, TorchBatchNorm
from normlab.norms.mixed import BatchInstanceNorm
from normlab.norms.pointwise import NoNorm
from normlab.norms.sample import GroupNorm, InstanceNorm, LayerNorm

__all__ = [
    "BatchInstanceNorm",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "NoNorm",
    "TorchBatchNorm",
    "available",
    "norm",
    "parse",
]


def available() -> list[str]:
    """The full names of all norms, in the order of this file.

    >>> "group" in available()
    True
    """
    return list(CATALOGUE)


def norm(spec: str, num_channels: int | None = None, **options: Any) -> Any:
    """The norm described by a spec.

    A spec is a name, then a colon and options: "group", "group:8" (groups), "group:size=16"
    (channels per group), "batch:n=2" (samples that share statistics). Short names of the literature
    (bn, gn, ln, in, bin, nn) work too.

    Args:
        num_channels: C; without it, a function of C is returned, for torchvision's norm_layer.
        options: further arguments of the layer.

    Raises:
        LookupError: no norm or no option is written like that.
        PatternError, ValueError, TypeError: options that do not fit.

    >>> norm("group:8", 64).num_groups
    8
    >>> norm("gn:size=16")(64).num_groups
    4
    """
    cls, parsed = parse(spec)
    build: Callable[..., Norm] = functools.partial(cls, **{**parsed, **options})
    return build if num_channels is None else build(num_channels)


def parse(spec: str) -> tuple[type[Norm], dict[str, int]]:
    """The class and the options a spec stands for.

    Raises:
        LookupError: no norm has that name, or no such option, or its value is no whole number.
    """
    name, _, rest = spec.partition(":")
    cls = CATALOGUE.get(ALIASES.get(name, name))
    if cls is None:
        short = ", ".join(f"{a} ({n})" for a, n in ALIASES.items())
        raise LookupError(f"norm {name!r}: there are {', '.join(CATALOGUE)}; in short {short}")
    options = {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.rpartition("=")
        option = cls.spec_options.get(key, key)
        if option not in cls.spec_options.values():
            forms = [f"{name}:{k}{'=' if k else ''}8" for k in cls.spec_options]
            raise LookupError(
                f"norm {spec!r}: cannot read {item!r}; write {' or '.join([name, *forms])}"
            )
        if not value.lstrip("-").isdigit():
            raise LookupError(f"norm {spec!r}: {option} must be a whole number, got {value!r}")
        options[option] = int(value)
    return cls, options
