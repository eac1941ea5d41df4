"""Every norm: its pattern, its equation, its paper. Writing a class here is all a new norm takes.

    batch       statistics of the batch, running averages in evaluation
    corrected   those, made right where a batch is small
    sample      statistics of each sample
    mixed       several patterns
    pointwise   no statistics
    response    the size of a response; norms that are an activation as well

`norm("group:8", 64)` builds one by name; `available()` lists the names.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from normlab.layer import ALIASES, CATALOGUE, Norm
from normlab.norms.batch import (
    BatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    SyncBatchNorm,
    TorchBatchNorm,
)
from normlab.norms.corrected import (
    BatchChannelNorm,
    BatchGroupNorm,
    BatchRenorm,
    ExtendedBatchNorm,
)
from normlab.norms.mixed import (
    BatchInstanceNorm,
    DomainBatchNorm,
    SwitchableNorm,
    domain,
    set_domain,
)
from normlab.norms.pointwise import Derf, DynamicTanh, NoNorm
from normlab.norms.response import (
    EvoNormB0,
    EvoNormS0,
    FilterResponseNorm,
    GlobalResponseNorm,
    LocalResponseNorm,
)
from normlab.norms.sample import GroupNorm, InstanceNorm, LayerNorm, PositionNorm, RMSNorm

__all__ = [
    "BatchChannelNorm",
    "BatchGroupNorm",
    "BatchInstanceNorm",
    "BatchNorm",
    "BatchRenorm",
    "Derf",
    "DomainBatchNorm",
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "ExtendedBatchNorm",
    "FilterResponseNorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GlobalResponseNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LocalResponseNorm",
    "NoNorm",
    "PositionNorm",
    "RMSNorm",
    "SwitchableNorm",
    "SyncBatchNorm",
    "TorchBatchNorm",
    "available",
    "domain",
    "norm",
    "parse",
    "set_domain",
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
    (channels per group), "batch:n=2" (samples that share statistics), "rms:group:8" (over the
    pattern of the norm that follows). Short names of the literature
    (bn, gn, ln, in, bin, nn) work too. One of yours is called by its module and its name, which
    need no registration: "my_norms.bands:2".

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


def parse(spec: str) -> tuple[type[Norm], dict[str, Any]]:
    """The class and the options a spec stands for.

    Raises:
        LookupError: no norm has that name, or no such option, or its value is no whole number.
    """
    name, _, rest = spec.partition(":")
    cls = _class_of(name, spec)
    if rest and (option := getattr(cls, "spec_norm", None)):
        parse(rest)  # refuses what is no norm
        return cls, {option: rest}
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


def _class_of(name: str, spec: str) -> type[Norm]:
    """The class a name stands for; a dotted one is a module and the name of a norm in it."""
    layer, plus, weights = spec.partition("+")
    if plus:
        raise LookupError(
            f"norm {spec!r}: {plus + weights!r} is a norm of the weights of a model, not of one "
            f"layer; call normlab.norm({layer!r}, …), and normlab.surgery.reparametrize(model, "
            f"{weights!r})"
        )
    cls = CATALOGUE.get(ALIASES.get(name, name))
    if cls is not None:
        return cls
    module, _, last = name.rpartition(".")
    if module and all(part.isidentifier() for part in name.split(".")):
        return _class_in(module, last, spec)
    short = ", ".join(f"{a} ({n})" for a, n in ALIASES.items())
    raise LookupError(f"norm {name!r}: there are {', '.join(CATALOGUE)}; in short {short}")


def _class_in(module: str, name: str, spec: str) -> type[Norm]:
    """The norm of that name in a module of somebody's own."""
    try:
        found = vars(importlib.import_module(module)).values()
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something it needs itself
        raise LookupError(
            f"norm {spec!r}: no module {error.name}; is its folder on the Python path?"
        ) from None
    norms = {c.name: c for c in found if isinstance(c, type) and issubclass(c, Norm) and c != Norm}
    if name not in norms:
        there = ", ".join(norms) or "none; write class Mine(normlab.Norm, name=…)"
        raise LookupError(f"norm {spec!r}: module {module} has no norm {name}; there are {there}")
    return norms[name]
