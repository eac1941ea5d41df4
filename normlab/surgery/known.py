"""What is known of a norm: its own population statistics, or those of the norm it replaced.

A converted layer carries the layer it replaced, beside its state (no key of a state_dict, but part
of copies and pickles), so that a conversion can be taken back.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normlab.surgery.moments import match
from normlab.surgery.rules import centers, evaluates_as_pattern, read

_KEY = "replaced"


@dataclass(frozen=True)
class Replaced:
    """The layer a norm replaced.

    Args:
        layer: as it was, with its weight, bias and running statistics.
        matched: weight and bias were changed to keep its function.
        weight, bias: as the conversion left them, to tell what was trained since.
    """

    layer: nn.Module
    matched: bool
    weight: Tensor | None = None
    bias: Tensor | None = None


class Known(NamedTuple):
    """A norm as it would be under population statistics.

    Args:
        layer: whose statistics these are: the norm itself, or the one it replaced.
        weight, bias: (C,); what was not trained is the very tensor of `layer`, else float64.
        mean, var: (C,); None where there are none, or never trained.
    """

    layer: nn.Module
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float


def replaced(layer: nn.Module) -> Replaced | None:
    """What a norm replaced, if it is the result of a conversion."""
    return vars(layer).get(_KEY)


def remember(layer: nn.Module, past: Replaced | None) -> None:
    """Let a norm carry what it replaced."""
    vars(layer).pop(_KEY, None)
    if past is not None:
        vars(layer)[_KEY] = past


def known(layer: nn.Module) -> Known:
    """The best that is known of a norm.

    Its own trained running statistics come first; then those of what it replaced, with weight and
    bias taken back by the inverse of `match` where they were trained since.
    """
    reading, past = read(layer), replaced(layer)
    assert reading is not None
    weight, bias = reading.tensor("weight"), reading.tensor("bias")
    mean, var = _trained(reading.core) if evaluates_as_pattern(reading.core) else (None, None)
    own = Known(layer, weight, bias, mean, var, reading.eps)
    if past is None or mean is not None:
        return own
    origin = read(past.layer)
    assert origin is not None
    mean, var = _trained(origin.core)
    if mean is None or var is None:
        return own._replace(layer=past.layer) if not past.matched else own
    if weight is not None:
        mean, var = mean.to(weight.device), var.to(weight.device)
    if not past.matched:
        return Known(past.layer, weight, bias, mean, var, origin.eps)
    found = match(
        reading.pattern, mean, var, eps=origin.eps, new_eps=reading.eps,
        center=centers(reading.core),
    )  # fmt: skip
    weight, bias = (
        _untouched(now, written, before, undone)
        for now, written, before, undone in zip(
            (weight, bias),
            (past.weight, past.bias),
            (origin.tensor("weight"), origin.tensor("bias")),
            found.undo(weight, bias),
        )
    )
    return Known(past.layer, weight, bias, mean, var, origin.eps)


def is_trained(core: Any) -> bool:
    """Whether running statistics are those of any data."""
    mean, var = core.running_mean, core.running_var
    if mean.is_meta:
        return False
    return bool(mean.any() or (var != 1).any())


def _trained(core: Any) -> tuple[Tensor | None, Tensor | None]:
    mean, var = getattr(core, "running_mean", None), getattr(core, "running_var", None)
    return (mean, var) if mean is not None and is_trained(core) else (None, None)


def _untouched(
    now: Tensor | None, written: Tensor | None, before: Tensor | None, undone: Tensor | None
) -> Tensor | None:
    """`before` where a parameter still is what was written, bit for bit; else what was undone."""
    if now is None or written is None or undone is None:
        return undone
    same = now.detach() == written.to(now)
    if before is None:  # it had none, and stays without if nothing was learnt
        return None if same.all() else undone
    return before if same.all() else torch.where(same.to(undone.device), before.to(undone), undone)
