"""The layers of a model: each found once, under all its names, and replaced under all of them."""

import re
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

# which layers: a glob over names, a regular expression searched in them, or a function of (name,
# layer); or any of several
Chooses = str | re.Pattern[str] | Callable[[str, nn.Module], bool]
Where = Chooses | list[Chooses] | tuple[Chooses, ...]


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


def matches(site: Site, where: Where | None) -> bool:
    """Whether `where` chooses a layer under any of its names; None chooses all.

    Raises:
        SurgeryError: it is nothing that could choose.
    """
    if where is None:
        return True
    if isinstance(where, list | tuple):
        return any(matches(site, one) for one in where)
    if isinstance(where, str):
        return any(fnmatchcase(name, where) for name in site.names)
    if isinstance(where, re.Pattern):
        return any(where.search(name) for name in site.names)
    if not callable(where):
        raise SurgeryError(
            "where is a glob over names, a compiled regular expression, a function of "
            f"(name, layer) or a list of these; got a {type(where).__name__}"
        )
    return any(where(name, site.layer) for name in site.names)


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
