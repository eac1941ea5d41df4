"""Norms that train no more: running statistics in training too, weight and bias fixed.

A layer with frozen statistics is given a subclass of its own class in which `training` is always
False. Whatever its forward does with `self.training` then holds without being rewritten, and nobody
can turn it back by `train()`, by a hook that is lost, or by a copy: the class is what is copied,
pickled and compiled.
"""

import functools
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from normlab.layer import Norm
from normlab.surgery.batches import bare
from normlab.surgery.layers import Site, SurgeryError, Where, matches, show_leaves, sites
from normlab.surgery.population import check_tracked, is_tracked

_NORMS = (_NormBase, Norm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_WHAT = {"stats": ("stats",), "affine": ("affine",), "both": ("stats", "affine")}
_KEPT = "_frozen_parameters"  # names of the parameters that had gradients before


@dataclass(frozen=True)
class Frozen:
    """What was frozen, or released, by the first name of each layer.

    Args:
        stats: norms whose running statistics are fixed.
        affine: norms whose parameters get no gradient.
    """

    stats: tuple[str, ...]
    affine: tuple[str, ...]

    def __str__(self) -> str:
        parts = (("statistics", self.stats), ("weight and bias", self.affine))
        return "; ".join(f"{what} of {_show(names)}" for what, names in parts if names) or "nothing"


def freeze(model: nn.Module, what: str = "stats", *, where: Where | None = None) -> Frozen:
    """Fix what norms normalize by, what they learn, or both, and say where.

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias,   in training too

    The model is changed in place. It stays frozen through `train()`, deepcopy, pickle, state_dict
    and torch.compile; `unfreeze` undoes it. A frozen layer is still an instance of its class.

    Args:
        what: "stats" fixes the running statistics of norms that keep any; "affine" lets no
            parameter of any norm need a gradient; "both".
        where: names as a glob ("layer1.*"), or as in `normlab.convert`; None is every norm.

    Raises:
        SurgeryError: no norm to freeze; the model is unchanged.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> print(freeze(model, "both"))
    statistics of 1 norm (1); weight and bias of 1 norm (1)
    >>> model.train()[1].training
    False
    """
    chosen = {part: _chosen(model, part, where) for part in _parts(what)}
    found = Frozen(*(_names(chosen.get(part, [])) for part in _WHAT["both"]))
    if not found.stats and not found.affine:
        raise SurgeryError(_nothing(model, what, where))
    for _, layer in chosen.get("stats", []):
        if not is_frozen(layer):
            cls: Any = type(layer)
            layer.__class__ = _frozen_class(cls)
    for _, layer in chosen.get("affine", []):
        own = _parameters(layer)
        learnt = tuple(name for name, p in own.items() if p.requires_grad)
        setattr(layer, _KEPT, (*vars(layer).get(_KEPT, ()), *learnt))
        for parameter in own.values():
            parameter.requires_grad_(False)
    return found


def unfreeze(model: nn.Module, what: str = "both", *, where: Where | None = None) -> Frozen:
    """Undo `freeze`, and say where; layers are in the mode that `train` and `eval` last asked for.

    Parameters that needed no gradient before they were frozen need none after.

    Args:
        what, where: as in `freeze`.

    Raises:
        SurgeryError: no norm is frozen there.

    >>> model = nn.Sequential(nn.BatchNorm2d(8))
    >>> _ = freeze(model)
    >>> print(unfreeze(model))
    statistics of 1 norm (0)
    """
    parts = _parts(what)
    matched = sites(bare(model, "unfreeze"), lambda layer: isinstance(layer, _NORMS))
    matched = [site for site in matched if matches(site, where)]
    stats = [s for s in matched if "stats" in parts and is_frozen(s.layer)]
    affine = [s for s in matched if "affine" in parts and _KEPT in vars(s.layer)]
    if not stats and not affine:
        raise SurgeryError(f"0 of {len(matched)} norms are frozen{_there(where)}; freeze first")
    for _, layer in stats:
        layer.__class__ = type(layer).__mro__[2]
    for _, layer in affine:
        for name in vars(layer).pop(_KEPT):
            layer.get_parameter(name).requires_grad_(True)
    return Frozen(_names(stats), _names(affine))


def is_frozen(layer: nn.Module) -> bool:
    """Whether a norm's running statistics are fixed by `freeze`."""
    return isinstance(layer, _Frozen)


class _Frozen:
    """Never in training; what is asked for is remembered, and shows once the class is gone."""

    @property
    def training(self) -> bool:
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        vars(self)["training"] = mode

    def __init_subclass__(cls) -> None:
        """Not passed on: a frozen norm is no new norm of the catalogue."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (type(self).__mro__[2],), self.__getstate__()


def _blank(cls: type) -> Any:
    """A frozen layer without its state, for copies and pickles."""
    frozen = _frozen_class(cls)
    return frozen.__new__(frozen)


@functools.cache
def _frozen_class(cls: type) -> Any:
    """A class that is `cls` but never in training; its module is kept, by which tracers decide."""
    return type(f"Frozen{cls.__name__}", (_Frozen, cls), {"__module__": cls.__module__})


def _parts(what: str) -> tuple[str, ...]:
    if what not in _WHAT:
        raise SurgeryError(f"what is one of {', '.join(map(repr, _WHAT))}, got {what!r}")
    return _WHAT[what]


def _chosen(model: nn.Module, part: str, where: Where | None) -> list[Site]:
    if part == "stats":
        wanted = is_tracked
    else:
        wanted = lambda layer: isinstance(layer, _NORMS) and bool(_parameters(layer))  # noqa: E731
    found = [s for s in sites(bare(model, "freeze"), wanted) if matches(s, where)]
    if part == "stats":
        for site in found:
            check_tracked(site.names[0], site.layer)
    return found


def _parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """A layer's own, without those of modules in it other than its parametrizations."""
    return {
        name: p
        for name, p in layer.named_parameters()
        if "." not in name or name.startswith("parametrizations.")
    }


def _names(found: list[Site]) -> tuple[str, ...]:
    return tuple(site.names[0] for site in found)


def _there(where: Where | None) -> str:
    return "" if where is None else f" where {where!r}"


def _nothing(model: nn.Module, what: str, where: Where | None) -> str:
    norms = sites(bare(model, "freeze"), lambda layer: isinstance(layer, _NORMS))
    has = {"stats": "running statistics", "affine": "parameters", "both": "either"}[what]
    first = f" (first {norms[0].names[0]!r})" if norms else f"; it has {show_leaves(model)}"
    return f"0 of {len(norms)} norms have {has} to freeze{_there(where)}{first}"


def _show(names: tuple[str, ...]) -> str:
    some = ", ".join(name or "the model" for name in names[:3])
    return f"{len(names)} norm{'s' * (len(names) > 1)} ({some}{', …' * (len(names) > 3)})"
