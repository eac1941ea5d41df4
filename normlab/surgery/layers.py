"""The layers of a model: each found once, under all its names, and replaced under all of them."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class SurgeryError(ValueError):
    """A model that cannot be changed as asked; it is unchanged."""


class Site(NamedTuple):
    """A layer of a model, and every path it is reached by; more than one if it is shared."""

    names: tuple[str, ...]
    layer: nn.Module


def sites(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[Site]:
    """The layers that are wanted, in the order of the model."""
    found: dict[int, tuple[list[str], nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if wanted(module):
            found.setdefault(id(module), ([], module))[0].append(name)
    return [Site(tuple(names), layer) for names, layer in found.values()]


def put(model: nn.Module, names: tuple[str, ...], new: nn.Module) -> nn.Module:
    """Put a layer under these names; returns the model, or the layer if that was the model."""
    for name in names:
        if not name:
            return new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def show_leaves(model: nn.Module) -> str:
    """The commonest layers of a model, for messages: "53 Conv2d, 49 ReLU"."""
    kinds = Counter(type(m).__name__ for m in model.modules() if not list(m.children()))
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(6))
