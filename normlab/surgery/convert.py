"""Replace the batch norms of a model by any other norm."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from normlab import norms
from normlab.layer import Norm

# exact types: a subclass may do more in its forward than normalize
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SurgeryError(ValueError):
    """A model that cannot be converted as asked; it is unchanged."""


@dataclass(frozen=True)
class Replacement:
    """One norm of a model and what takes its place.

    Args:
        names: every path the layer is reached by; more than one if it is shared.
    """

    names: tuple[str, ...]
    old: nn.Module
    new: Norm


def plan(model: nn.Module, spec: str, **options: Any) -> list[Replacement]:
    """What `convert` would replace; changes nothing.

    Raises:
        SurgeryError: no batch norm, or layers that cannot be replaced, all of them listed.
    """
    found: dict[int, tuple[list[str], nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) in _BATCH_NORMS:
            found.setdefault(id(module), ([], module))[0].append(name)
    if not found:
        kinds = Counter(type(m).__name__ for m in model.modules() if not list(m.children()))
        has = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(6))
        raise SurgeryError(f"0 batch norms matched, so there is nothing to replace; it has {has}")
    planned, problems = [], []
    for names, old in found.values():
        try:
            planned.append(Replacement(tuple(names), old, _replacement(old, spec, options)))
        except ValueError as error:
            problems.append(f"  {names[0]}: {error}")
    if problems:
        raise SurgeryError(
            f"{len(problems)} of {len(found)} norms cannot become {spec!r}:\n" + "\n".join(problems)
        )
    return planned


def convert(model: nn.Module, spec: str, **options: Any) -> nn.Module:
    """Replace every batch norm of a model by the norm a spec describes, and return the model.

    Weights, biases, eps, type, device, mode and frozen parameters are kept; statistics start anew.
    A layer reached by two names stays one layer. The model is changed in place, unless it is a norm
    itself.

    Args:
        model: any module; its exact torch.nn.BatchNorm1d, 2d and 3d are replaced.
        spec: see `normlab.norm`.
        options: further arguments of the new layers.

    Raises:
        SurgeryError: no batch norm, or layers that cannot be replaced; the model is unchanged.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> convert(model, "group:4")[1].num_groups
    4
    """
    for replacement in plan(model, spec, **options):
        for name in replacement.names:
            if not name:
                return replacement.new
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, replacement.new)
    return model


def _replacement(old: Any, spec: str, options: dict[str, Any]) -> Norm:
    if old._forward_hooks or old._forward_pre_hooks or old._backward_hooks:
        raise SurgeryError("has hooks, which would be lost; remove them first")
    like = old.weight if old.affine else old.running_mean
    place = {} if like is None else {"device": like.device, "dtype": like.dtype}
    new = norms.norm(
        spec,
        old.num_features,
        **{"eps": old.eps, "momentum": old.momentum, "affine": old.affine, **place, **options},
    )
    for name in ("weight", "bias"):
        kept = getattr(old, name)
        if kept is not None and getattr(new, name) is not None:
            setattr(new, name, kept)
    return new.train(old.training)
