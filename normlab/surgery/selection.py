"""Which norms of a model a conversion is about, and which stay, and why."""

from dataclasses import dataclass

from torch import nn

from normlab import norms
from normlab.surgery.layers import Site, SurgeryError, Where, matches, show_leaves, sites
from normlab.surgery.refusals import lazy_or_quantized
from normlab.surgery.rules import (
    is_as_still,
    is_one_pattern,
    kind,
    read,
    reason_to_leave,
    same_statistics,
    synchronizes,
)
from normlab.surgery.targets import Wish


@dataclass(frozen=True)
class Left:
    """A norm that stays, and why."""

    names: tuple[str, ...]
    layer: nn.Module
    reason: str


def select(
    model: nn.Module, wish: Wish, where: Where | None, calls: list[str]
) -> tuple[list[Left], list[Site]]:
    """Norms that stay, and norms to be replaced.

    Raises:
        SurgeryError: there is no norm, `where` chooses none, or none has a rule.
    """
    found = _norms(model)
    chosen = [site for site in found if matches(site, where)]
    if not chosen:
        shown = where if isinstance(where, str) else getattr(where, "pattern", None)
        there = f" where={shown!r} of {len(found)}" if shown is not None and found else ""
        raise SurgeryError(
            f"0 norms matched{there}, so there is nothing to replace; it has {show_leaves(model)}"
            + "".join(f"; {call}" for call in calls)
        )
    return _sorted_out(chosen, wish, where)


def _norms(model: nn.Module) -> list[Site]:
    """Norms with and without a rule, but none that is part of another."""
    units: list[Site] = []
    inside: set[int] = set()
    known_or_named = sites(model, lambda m: read(m) is not None or reason_to_leave(m) is not None)
    for site in known_or_named:
        if id(site.layer) in inside:
            continue
        units.append(site)
        inside |= {id(m) for m in site.layer.modules()}
    return units


def _sorted_out(
    chosen: list[Site], wish: Wish, where: Where | None
) -> tuple[list[Left], list[Site]]:
    """Norms without a rule and those that are as wanted, and the rest."""
    left, wanted = [], []
    for site in chosen:
        if read(site.layer) is None and lazy_or_quantized(site.layer) is None:
            left.append(Left(*site, reason_to_leave(site.layer) or ""))
        elif where is None and _is_as_wanted(site.layer, wish):
            left.append(Left(*site, "has these statistics already (where= names it to replace it)"))
        else:
            wanted.append(site)
    if not wanted and not any("already" in one.reason for one in left):
        reasons = "; ".join(dict.fromkeys(f"{one.names[0]} {one.reason}" for one in left[:3]))
        raise SurgeryError(
            f"0 norms matched, so there is nothing to replace; {len(left)} were left: {reasons}"
        )
    return left, wanted


def _is_as_wanted(layer: nn.Module, wish: Wish) -> bool:
    reading = read(layer)
    if reading is None or lazy_or_quantized(layer):
        return False
    try:
        new = norms.norm(wish.spec, reading.num_channels, device="meta", affine=False)
    except ValueError:
        return False
    if kind(layer) is type(new) and not is_one_pattern(layer):
        return reading.pattern == new.pattern
    if not is_one_pattern(layer) or reading.strength != wish.strength:
        return False
    same = same_statistics(reading.pattern, new.pattern, reading.num_channels)
    alike = is_as_still(layer, new) and synchronizes(layer) == new.synchronize
    return is_one_pattern(new) and same and alike
